//! The routing table: host and path prefix → service.
//!
//! Order of hosts: exact name, then `*.` one label, then any host. Once a host level matches, only its
//! paths are searched (kamal-proxy, `TestServiceMap_ServiceForHost`). The longest prefix wins.

use std::collections::HashMap;

use crate::name::{HostPattern, PathPrefix};

/// What hosts lead to, by exact name, then `*.` one label, then any host.
#[derive(Debug, Clone)]
pub struct HostMap<V> {
    exact: HashMap<String, V>,
    wildcard: HashMap<String, V>,
    any: Option<V>,
}

/// `T` is what a route leads to; the data plane stores its service, tests store a name.
#[derive(Debug, Clone)]
pub struct RouteTable<T> {
    hosts: HostMap<Paths<T>>,
}

/// Longest prefix first, so that the first match is the best.
type Paths<T> = Vec<(PathPrefix, T)>;

/// Two services claim one host and prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict<T> {
    /// `None`: any host.
    pub host: Option<HostPattern>,
    pub prefix: PathPrefix,
    pub owner: T,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup<'t, T> {
    Found {
        prefix: &'t PathPrefix,
        route: &'t T,
    },
    /// Nobody serves this host.
    UnknownHost,
    /// The host is served, but no prefix covers the path.
    UnknownPath,
}

impl<V> Default for HostMap<V> {
    fn default() -> Self {
        Self { exact: HashMap::new(), wildcard: HashMap::new(), any: None }
    }
}

impl<V> HostMap<V> {
    /// The best match for `host` (lower case, without port or trailing dot).
    pub fn best(&self, host: &str) -> Option<&V> {
        let wildcard = || host.split_once('.').and_then(|(_, domain)| self.wildcard.get(domain));
        self.exact.get(host).or_else(wildcard).or(self.any.as_ref())
    }

    /// The value bound to exactly this pattern; `None` as a pattern is any host.
    pub fn bound(&self, pattern: Option<&HostPattern>) -> Option<&V> {
        match pattern {
            None => self.any.as_ref(),
            Some(HostPattern::Exact(name)) => self.exact.get(name.as_str()),
            Some(HostPattern::Wildcard(domain)) => self.wildcard.get(domain.as_str()),
        }
    }
}

impl<V: Default> HostMap<V> {
    pub fn bound_mut(&mut self, pattern: Option<&HostPattern>) -> &mut V {
        match pattern {
            None => self.any.get_or_insert_default(),
            Some(HostPattern::Exact(name)) => self.exact.entry(name.as_str().to_owned()).or_default(),
            Some(HostPattern::Wildcard(domain)) => {
                self.wildcard.entry(domain.as_str().to_owned()).or_default()
            }
        }
    }
}

impl<T> Default for RouteTable<T> {
    fn default() -> Self {
        Self { hosts: HostMap::default() }
    }
}

impl<T: Clone> RouteTable<T> {
    /// Binds every combination of `hosts` (none: any host) and `prefixes` to `route`.
    ///
    /// On a conflict nothing is bound.
    pub fn bind(
        &mut self,
        hosts: &[HostPattern],
        prefixes: &[PathPrefix],
        route: &T,
    ) -> Result<(), Conflict<T>> {
        let patterns: Vec<Option<&HostPattern>> =
            if hosts.is_empty() { vec![None] } else { hosts.iter().map(Some).collect() };
        for host in &patterns {
            for prefix in prefixes {
                let taken =
                    self.hosts.bound(*host).and_then(|paths| paths.iter().find(|(bound, _)| bound == prefix));
                if let Some((_, owner)) = taken {
                    let (host, prefix) = (host.cloned(), prefix.clone());
                    return Err(Conflict { host, prefix, owner: owner.clone() });
                }
            }
        }
        for host in patterns {
            let paths = self.hosts.bound_mut(host);
            paths.extend(prefixes.iter().map(|prefix| (prefix.clone(), route.clone())));
            paths.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.as_str().len()));
        }
        Ok(())
    }
}

impl<T> RouteTable<T> {
    /// Finds the route of a request. `host` is lower case, without port or trailing dot; `path` is raw.
    pub fn lookup(&self, host: &str, path: &str) -> Lookup<'_, T> {
        let Some(paths) = self.hosts.best(host) else { return Lookup::UnknownHost };
        match paths.iter().find(|(prefix, _)| prefix.covers(path)) {
            Some((prefix, route)) => Lookup::Found { prefix, route },
            None => Lookup::UnknownPath,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rows: &[(&str, &str, &'static str)]) -> RouteTable<&'static str> {
        let mut table = RouteTable::default();
        for (hosts, prefix, route) in rows {
            let hosts: Vec<_> =
                hosts.split(',').filter(|h| !h.is_empty()).map(|h| h.parse().unwrap()).collect();
            table.bind(&hosts, &[prefix.parse().unwrap()], route).unwrap();
        }
        table
    }

    #[test]
    fn lookups() {
        let table = table(&[
            ("shop.test", "/", "shop"),
            ("shop.test", "/admin", "admin"),
            ("shop.test", "/admin/api", "api"),
            ("*.shop.test", "/", "tenants"),
            ("docs.test", "/v1", "docs"),
            ("", "/", "any"),
        ]);
        for (host, path, want) in [
            ("shop.test", "/", "shop"),
            ("shop.test", "/admin", "admin"),
            ("shop.test", "/admin/x", "admin"),
            ("shop.test", "/administrator", "shop"),
            ("shop.test", "/admin/api/v1", "api"),
            ("shop.test", "//admin", "shop"),
            ("shop.test", "/ADMIN", "shop"),
            ("a.shop.test", "/x", "tenants"),
            ("a.b.shop.test", "/", "any"),
            ("docs.test", "/v1/x", "docs"),
            ("docs.test", "/v2", "unknown path"),
            ("other.test", "/", "any"),
        ] {
            let got = match table.lookup(host, path) {
                Lookup::Found { route, .. } => *route,
                Lookup::UnknownHost => "unknown host",
                Lookup::UnknownPath => "unknown path",
            };
            assert_eq!(got, want, "{host} {path}");
        }
    }

    #[test]
    fn an_empty_table_knows_no_host() {
        assert_eq!(table(&[]).lookup("shop.test", "/"), Lookup::UnknownHost);
    }

    #[test]
    fn conflicts_bind_nothing() {
        let mut table = table(&[("shop.test", "/", "shop")]);
        let hosts = ["new.test".parse().unwrap(), "shop.test".parse().unwrap()];
        let conflict = table.bind(&hosts, &[PathPrefix::root()], &"other").unwrap_err();
        assert_eq!((conflict.owner, conflict.host), ("shop", Some("shop.test".parse().unwrap())));
        assert_eq!(table.lookup("new.test", "/"), Lookup::UnknownHost);
        // Any host beside a named host is no conflict.
        table.bind(&[], &[PathPrefix::root()], &"any").unwrap();
    }
}
