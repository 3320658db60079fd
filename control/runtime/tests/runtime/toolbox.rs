//! The only program in the tests' image. Compiled by the tests, static, std alone.
//!
//! `toolbox <command> [argument…]`, several commands separated by `+`.

use std::io::Write;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for command in arguments.split(|argument| argument == "+") {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        run(&words);
    }
}

fn run(words: &[&str]) {
    match words {
        ["echo", text @ ..] => println!("{}", text.join(" ")),
        // At once, and with no line feed that is not there.
        ["print", text] => {
            print!("{text}");
            std::io::stdout().flush().expect("it is open");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        ["warn", text @ ..] => eprintln!("{}", text.join(" ")),
        ["env"] => std::env::vars().for_each(|(key, value)| println!("{key}={value}")),
        ["cat", file] => match std::fs::read_to_string(file) {
            Ok(text) => println!("{}", text.trim_end()),
            Err(error) => println!("{file}: {error}"),
        },
        ["ls", dir] => match std::fs::read_dir(dir) {
            Ok(entries) => entries.flatten().for_each(|entry| println!("{}", entry.file_name().display())),
            Err(error) => println!("{dir}: {error}"),
        },
        ["write", file, text] => match std::fs::write(file, text) {
            Ok(()) => println!("written"),
            Err(error) => println!("{file}: {error}"),
        },
        ["copy"] => {
            std::io::copy(&mut std::io::stdin(), &mut std::io::stdout()).expect("both are open");
        }
        ["terminal"] => println!("{}", std::io::IsTerminal::is_terminal(&std::io::stdout())),
        // Of its terminal: rows and columns.
        ["size"] => {
            let size = terminal_size();
            println!("{} {}", size[0], size[1]);
        }
        ["line"] => {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).expect("it is open");
            println!("read {}", line.trim_end());
        }
        ["exit", code] => std::process::exit(code.parse().expect("a number")),
        ["eat", mebibytes] => {
            let n: usize = mebibytes.parse().expect("a number");
            let eaten: Vec<Vec<u8>> = (0..n).map(|_| vec![1; 1 << 20]).collect();
            println!("ate {}", eaten.len());
        }
        ["has", file] => std::process::exit(if std::fs::exists(file).expect("readable") {
            println!("{file} is there");
            0
        } else {
            println!("no {file}");
            1
        }),
        ["listen", port, after_ms] => {
            std::thread::sleep(std::time::Duration::from_millis(after_ms.parse().expect("a number")));
            let port: u16 = port.parse().expect("a port");
            let _listener = std::net::TcpListener::bind(("0.0.0.0", port)).expect("nobody else is here");
            loop {
                std::thread::park();
            }
        }
        ["stay"] => loop {
            std::thread::park();
        },
        other => panic!("unknown command {other:?}"),
    }
    std::io::stdout().flush().expect("stdout is open");
}

unsafe extern "C" {
    fn ioctl(fd: i32, request: u64, ...) -> i32;
}

fn terminal_size() -> [u16; 4] {
    const TIOCGWINSZ: u64 = 0x5413;
    let mut size = [0_u16; 4];
    // SAFETY: the kernel writes four numbers of 16 bits, for which there is room.
    assert_eq!(unsafe { ioctl(0, TIOCGWINSZ, size.as_mut_ptr()) }, 0, "a terminal");
    size
}
