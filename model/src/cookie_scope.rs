//! Cookies of an app below a path prefix that it does not see: their `Path` is brought below the prefix, so that two apps
//! on one host do not get each other's.

/// The `Set-Cookie` value with its path below `prefix` (`/api`, without a slash at its end), for a request to `host`.
/// `None`: it stays as it is, because it is for another host (RFC 6265 §5.2.3), or because its name begins with
/// `__Host-`, which browsers take with `Path=/` alone.
pub fn scope(cookie: &str, prefix: &str, host: &str) -> Option<String> {
    let mut attributes = cookie.split(';');
    let pair = attributes.next().unwrap_or_default();
    if pair.trim_start().get(..7).is_some_and(|start| start.eq_ignore_ascii_case("__Host-")) {
        return None;
    }
    // Of several the last one counts (RFC 6265 §5.3).
    let mut path = None;
    let mut others = Vec::new();
    for attribute in attributes {
        let (name, value) = attribute.split_once('=').unwrap_or((attribute, ""));
        let value = value.trim();
        if name.trim().eq_ignore_ascii_case("path") {
            path = Some(value);
            continue;
        }
        if name.trim().eq_ignore_ascii_case("domain") {
            let domain = value.strip_prefix('.').unwrap_or(value);
            if !domain.is_empty() && !domain.eq_ignore_ascii_case(host) {
                return None;
            }
        }
        others.push(attribute);
    }
    let below = match path.filter(|path| path.starts_with('/')) {
        None | Some("/") => "",
        Some(path) => path,
    };
    let mut scoped = format!("{pair}; Path={prefix}{below}");
    for attribute in others {
        scoped.push(';');
        scoped.push_str(attribute);
    }
    Some(scoped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_below_the_prefix() {
        for (cookie, want) in [
            ("a=1", Some("a=1; Path=/api")),
            ("a=1; Path=/", Some("a=1; Path=/api")),
            ("a=1; Path=/admin", Some("a=1; Path=/api/admin")),
            ("a=1; path=/admin; HttpOnly; Secure", Some("a=1; Path=/api/admin; HttpOnly; Secure")),
            ("a=1; HttpOnly; SameSite=Lax", Some("a=1; Path=/api; HttpOnly; SameSite=Lax")),
            ("a=1; Path=/x; Path=/y", Some("a=1; Path=/api/y")),
            ("a=1; Path=relative", Some("a=1; Path=/api")),
            ("a=1;Path=/;Max-Age=5", Some("a=1; Path=/api;Max-Age=5")),
            ("a=1; Domain=app.test; Path=/", Some("a=1; Path=/api; Domain=app.test")),
            ("a=1; Domain=.APP.test", Some("a=1; Path=/api; Domain=.APP.test")),
            ("a=1; Domain=test", None),
            ("a=1; Domain=sub.app.test", None),
            ("a=1; Domain=other.test; Path=/", None),
            ("__Host-a=1; Path=/; Secure", None),
            ("__Secure-a=1; Path=/", Some("__Secure-a=1; Path=/api")),
            ("ä", Some("ä; Path=/api")),
            ("", Some("; Path=/api")),
        ] {
            assert_eq!(scope(cookie, "/api", "app.test").as_deref(), want, "{cookie}");
        }
    }
}
