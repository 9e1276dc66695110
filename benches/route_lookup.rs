//! Does finding a route cost the same with one service and with a thousand?

use divan::Bencher;
use model::route::RouteTable;

fn main() {
    divan::main();
}

fn table(services: usize) -> RouteTable<usize> {
    let mut table = RouteTable::default();
    for n in 0..services {
        let hosts = [format!("shop{n}.example.com").parse().unwrap_or_else(|_| unreachable!())];
        let prefixes =
            ["/", "/admin", "/api/v1"].map(|prefix| prefix.parse().unwrap_or_else(|_| unreachable!()));
        assert!(table.bind(&hosts, &prefixes, &n).is_ok());
    }
    table
}

#[divan::bench(args = [1, 10, 100, 1000])]
fn exact_host(bencher: Bencher<'_, '_>, services: usize) {
    let table = table(services);
    let host = format!("shop{}.example.com", services / 2);
    bencher.bench(|| {
        let found = table.lookup(divan::black_box(&host), divan::black_box("/api/v1/orders/42"));
        assert!(matches!(found, model::route::Lookup::Found { .. }));
    });
}
