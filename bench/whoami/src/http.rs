//! As much HTTP/1.1 (RFC 9112) as server and client need. Pure.

/// Longest head of a message: more is no request of ours.
pub const HEAD_LEN_MAX: usize = 16 << 10;

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHead {
    pub method: String,
    pub target: String,
    /// The client wants to go on with this connection.
    pub keep_alive: bool,
    /// Bytes of body that follow.
    pub body_len: usize,
}

/// Finds a whole head at the beginning of `bytes`: its length with the empty line.
pub fn head_len(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Parses a request's head. `None` is a bad request; a body in chunks is one too, for this server.
pub fn parse_request(head: &[u8]) -> Option<RequestHead> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || method.is_empty() || target.is_empty() {
        return None;
    }
    let mut keep_alive = match version {
        "HTTP/1.1" => true,
        "HTTP/1.0" => false,
        _ => return None,
    };
    let mut body_len = 0;
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "connection" if value.eq_ignore_ascii_case("close") => keep_alive = false,
            "connection" if value.eq_ignore_ascii_case("keep-alive") => keep_alive = true,
            "content-length" => body_len = value.parse().ok()?,
            "transfer-encoding" => return None,
            _ => {}
        }
    }
    Some(RequestHead { method: method.to_owned(), target: target.to_owned(), keep_alive, body_len })
}

/// A whole answer. `with_body` is false for HEAD.
pub fn response(status: &str, body: &str, keep_alive: bool, with_body: bool) -> Vec<u8> {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let len = body.len();
    let mut bytes = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\n\
         Connection: {connection}\r\n\r\n"
    )
    .into_bytes();
    if with_body {
        bytes.extend_from_slice(body.as_bytes());
    }
    bytes
}

/// The head of a long answer of bytes, after which the connection is closed. `task` says who sends it.
pub fn stream_head(len: u64, task: &str) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: close";
    format!("{head}\r\nX-Task: {task}\r\nContent-Length: {len}\r\n\r\n").into_bytes()
}

/// `http://host[:port][/path]` in parts.
pub fn parse_url(url: &str) -> Option<(&str, u16, String)> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()?),
        None => (authority, 80),
    };
    (!host.is_empty()).then(|| (host, port, format!("/{path}")))
}

/// Status code and body of an answer that was read to its end.
pub fn parse_response(bytes: &[u8]) -> Option<(u16, String)> {
    let end = head_len(bytes)?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, String::from_utf8_lossy(&bytes[end..]).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Option<RequestHead> {
        parse_request(text.as_bytes())
    }

    #[test]
    fn requests_are_read() {
        let head = request("GET /x?y HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n").expect("good");
        assert_eq!((head.target.as_str(), head.keep_alive, head.body_len), ("/x?y", true, 3));
        assert!(!request("GET / HTTP/1.0\r\n\r\n").expect("good").keep_alive);
        assert!(request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").expect("good").keep_alive);
        assert!(!request("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n").expect("good").keep_alive);
        for bad in
            ["", "GET\r\n\r\n", "GET / HTTP/2\r\n\r\n", "GET / HTTP/1.1\r\nx\r\n\r\n", "G / H x\r\n\r\n"]
        {
            assert_eq!(request(bad), None, "{bad:?}");
        }
        assert_eq!(request("GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), None);
        assert_eq!(parse_request(&[0xff, 0xfe]), None);
    }

    #[test]
    fn answers_say_how_long_they_are() {
        let bytes = response("200 OK", "hello", false, true);
        assert_eq!(parse_response(&bytes), Some((200, "hello".into())));
        assert!(String::from_utf8(bytes).expect("text").contains("Content-Length: 5\r\nConnection: close"));
        assert_eq!(parse_response(&response("200 OK", "hello", true, false)), Some((200, String::new())));
    }

    #[test]
    fn urls_have_parts() {
        assert_eq!(parse_url("http://a:8080/x/y"), Some(("a", 8080, "/x/y".into())));
        assert_eq!(parse_url("http://a"), Some(("a", 80, "/".into())));
        assert_eq!(parse_url("https://a"), None);
        assert_eq!(parse_url("http://:1/"), None);
    }
}
