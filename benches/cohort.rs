//! What does a canary cost each request?

use divan::Bencher;
use model::canary::{Assignment, FleetSecret, Overrides, Visit, VisitorSource};
use model::weight::Weight;

fn main() {
    divan::main();
}

fn assignment() -> Assignment {
    let weight = Weight::from_basis_points(500).unwrap_or_default();
    let secret = FleetSecret::new(b"secret");
    Assignment::new(&secret, "shop", "r2", weight, VisitorSource::default(), Overrides::default())
}

fn assign(assignment: &Assignment, cookie: Option<&str>) -> model::canary::Assigned {
    let visit = Visit {
        header: |_: &str| None,
        cookie: |_: &str| cookie,
        client: [192, 0, 2, 7].into(),
        day: 20_000,
        user_agent: b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
    };
    assignment.assign(&visit, true)
}

#[divan::bench]
fn first_visit(bencher: Bencher<'_, '_>) {
    let assignment = assignment();
    bencher.bench(|| assign(divan::black_box(&assignment), None));
}

#[divan::bench]
fn returning_visit(bencher: Bencher<'_, '_>) {
    let assignment = assignment();
    let cookie = assign(&assignment, None).set_cookie.unwrap_or_default();
    bencher.bench(|| assign(divan::black_box(&assignment), Some(&cookie)));
}
