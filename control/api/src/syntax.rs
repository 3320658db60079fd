//! What is wrong with text that is no JSON, in the words of Go's `encoding/json` (`scanner.go`), which clients of
//! Docker know.

/// The first thing that is wrong; `None` if this finds nothing, or only that the text ends too early.
pub fn first_error(bytes: &[u8]) -> Option<String> {
    let mut scanner = Scanner { rest: bytes, open: Vec::new() };
    scanner.value().and_then(|()| scanner.close_all()).err().and_then(|stop| match stop {
        Stop::Unexpected(byte, context) => Some(format!("invalid character {} {context}", quoted(byte))),
        Stop::End => None,
    })
}

/// Why scanning ended.
enum Stop {
    End,
    Unexpected(u8, String),
}

struct Scanner<'a> {
    rest: &'a [u8],
    /// Closing bytes of the arrays and objects around: a list, not recursion, so that depth costs no stack.
    open: Vec<u8>,
}

impl Scanner<'_> {
    fn next(&mut self) -> Result<u8, Stop> {
        let (first, rest) = self.rest.split_first().ok_or(Stop::End)?;
        self.rest = rest;
        Ok(*first)
    }

    fn next_visible(&mut self) -> Result<u8, Stop> {
        self.rest = self.rest.trim_ascii_start();
        self.next()
    }

    fn is_next(&self, byte: u8) -> bool {
        self.rest.first() == Some(&byte)
    }

    /// A value, or the start of one that is closed later.
    fn value(&mut self) -> Result<(), Stop> {
        loop {
            match self.next_visible()? {
                b'{' => {
                    self.open.push(b'}');
                    self.rest = self.rest.trim_ascii_start();
                    if self.is_next(b'}') {
                        return Ok(());
                    }
                    self.key()?;
                }
                b'[' => {
                    self.open.push(b']');
                    self.rest = self.rest.trim_ascii_start();
                    if self.is_next(b']') {
                        return Ok(());
                    }
                }
                b'"' => return self.string(),
                first @ (b'-' | b'0'..=b'9') => return self.number(first),
                b't' => return self.literal("true"),
                b'f' => return self.literal("false"),
                b'n' => return self.literal("null"),
                other => return unexpected(other, "looking for beginning of value"),
            }
        }
    }

    /// What follows a value, until everything that was opened is closed.
    fn close_all(&mut self) -> Result<(), Stop> {
        while let Some(&closing) = self.open.last() {
            match self.next_visible()? {
                byte if byte == closing => drop(self.open.pop()),
                b',' => {
                    if closing == b'}' {
                        self.key()?;
                    }
                    self.value()?;
                }
                other if closing == b'}' => return unexpected(other, "after object key:value pair"),
                other => return unexpected(other, "after array element"),
            }
        }
        Ok(())
    }

    fn key(&mut self) -> Result<(), Stop> {
        match self.next_visible()? {
            b'"' => self.string()?,
            other => return unexpected(other, "looking for beginning of object key string"),
        }
        match self.next_visible()? {
            b':' => Ok(()),
            other => unexpected(other, "after object key"),
        }
    }

    fn string(&mut self) -> Result<(), Stop> {
        loop {
            match self.next()? {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                control @ 0..0x20 => return unexpected(control, "in string literal"),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<(), Stop> {
        match self.next()? {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => Ok(()),
            b'u' => {
                for _ in 0..4 {
                    let digit = self.next()?;
                    if !digit.is_ascii_hexdigit() {
                        return unexpected(digit, "in \\u hexadecimal character escape");
                    }
                }
                Ok(())
            }
            other => unexpected(other, "in string escape code"),
        }
    }

    fn number(&mut self, first: u8) -> Result<(), Stop> {
        let leading = if first == b'-' { self.digit("in numeric literal")? } else { first };
        if leading != b'0' {
            self.digits();
        }
        if self.is_next(b'.') {
            self.next()?;
            self.digit("after decimal point in numeric literal")?;
            self.digits();
        }
        if self.is_next(b'e') || self.is_next(b'E') {
            self.next()?;
            if self.is_next(b'+') || self.is_next(b'-') {
                self.next()?;
            }
            self.digit("in exponent of numeric literal")?;
            self.digits();
        }
        Ok(())
    }

    fn digit(&mut self, context: &str) -> Result<u8, Stop> {
        match self.next()? {
            digit @ b'0'..=b'9' => Ok(digit),
            other => Err(Stop::Unexpected(other, context.to_owned())),
        }
    }

    fn digits(&mut self) {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.rest = &self.rest[count..];
    }

    /// The rest of a word whose first letter is read.
    fn literal(&mut self, word: &str) -> Result<(), Stop> {
        for expected in word.bytes().skip(1) {
            let byte = self.next()?;
            if byte != expected {
                let context = format!("in literal {word} (expecting {})", quoted(expected));
                return Err(Stop::Unexpected(byte, context));
            }
        }
        Ok(())
    }
}

fn unexpected<T>(byte: u8, context: &str) -> Result<T, Stop> {
    Err(Stop::Unexpected(byte, context.to_owned()))
}

/// As Go quotes a byte; bytes beyond ASCII as the code point of the same number.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".into(),
        b'"' => "'\"'".into(),
        b'\\' => r"'\\'".into(),
        b'\n' => r"'\n'".into(),
        b'\r' => r"'\r'".into(),
        b'\t' => r"'\t'".into(),
        0..0x20 | 0x7f => format!("'\\x{byte:02x}'"),
        other => format!("'{}'", char::from(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_gos() {
        for (text, error) in [
            ("nope", "invalid character 'o' in literal null (expecting 'u')"),
            ("x", "invalid character 'x' looking for beginning of value"),
            ("{nope}", "invalid character 'n' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "invalid character '1' after object key"),
            (r#"{"a":1 "b"}"#, "invalid character '\"' after object key:value pair"),
            (r#"{"a":1,}"#, "invalid character '}' looking for beginning of object key string"),
            ("[1 2]", "invalid character '2' after array element"),
            ("[1,]", "invalid character ']' looking for beginning of value"),
            ("\"a\nb\"", "invalid character '\\n' in string literal"),
            (r#""\x""#, "invalid character 'x' in string escape code"),
            (r#""\u00g0""#, "invalid character 'g' in \\u hexadecimal character escape"),
            ("-x", "invalid character 'x' in numeric literal"),
            ("1.x", "invalid character 'x' after decimal point in numeric literal"),
            ("1e+x", "invalid character 'x' in exponent of numeric literal"),
            ("{'a':1}", "invalid character '\\'' looking for beginning of object key string"),
        ] {
            assert_eq!(first_error(text.as_bytes()).as_deref(), Some(error), "{text}");
        }
    }

    #[test]
    fn sound_and_unfinished_texts_have_none() {
        for text in ["", "{", r#"{"a":[1,{"b":-1.5e3}],"c":null}"#, "[[],{}]", "tru", r#""\u12"#, "12"] {
            assert_eq!(first_error(text.as_bytes()), None, "{text}");
        }
        assert_eq!(first_error("[".repeat(1 << 20).as_bytes()), None);
    }
}
