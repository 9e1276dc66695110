//! What does it cost each request to learn what is configured, and does it matter how much that is?

use std::sync::Arc;

use divan::Bencher;
use model::canary::Cohort;
use model::route::{Lookup, RouteTable};
use model::service::Policy;
use portcullis::release::{Endpoint, Release, Target};
use portcullis::snapshot::{LogFields, Published, Service, Slot, Snapshot};
use portcullis::telemetry::metrics::TargetStats;

fn main() {
    divan::main();
}

fn service(n: usize) -> Arc<Service> {
    let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 3000).into());
    let target = Target::new("127.0.0.1:3000", endpoint, Arc::new(TargetStats::new(1)), 1);
    let release = Release::new("r1", vec![Arc::clone(&target)]);
    Arc::new(Service {
        name: format!("shop{n}").into(),
        policy: Policy::default(),
        redirect_to_https: false,
        stable: Slot {
            cohort: Cohort::Stable,
            release,
            targets: Box::new([target]),
            readers: Box::default(),
        },
        canary: None,
        pages: None,
        log_fields: LogFields::default(),
        halt: None,
        client_auth: None,
        hsts: None,
    })
}

fn published(services: usize) -> Published {
    let mut routes = RouteTable::default();
    let mut by_name = std::collections::HashMap::new();
    for n in 0..services {
        let service = service(n);
        let host = format!("shop{n}.example.com").parse().unwrap_or_else(|_| unreachable!());
        let prefix = "/".parse().unwrap_or_else(|_| unreachable!());
        assert!(routes.bind(&[host], &[prefix], &service).is_ok());
        by_name.insert(Arc::clone(&service.name), service);
    }
    let published = Published::default();
    published.publish(Snapshot { generation: 1, routes, services: by_name, ..Snapshot::default() });
    published
}

#[divan::bench(args = [1, 1000])]
fn load(bencher: Bencher<'_, '_>, services: usize) {
    let published = published(services);
    bencher.bench(|| divan::black_box(&published).load().generation);
}

/// With what follows: the route, and a hold on the service beyond the guard.
#[divan::bench(args = [1, 1000])]
fn load_and_find(bencher: Bencher<'_, '_>, services: usize) {
    let published = published(services);
    let host = format!("shop{}.example.com", services / 2);
    bencher.bench(|| {
        let snapshot = divan::black_box(&published).load();
        match snapshot.routes.lookup(divan::black_box(&host), "/orders/42") {
            Lookup::Found { route, .. } => Some(Arc::clone(route)),
            _ => None,
        }
    });
}
