//! What the demo shows, step by step: it prints each command that it runs and notes what did not hold.

use std::time::{Duration, Instant};

use harness::{Ask, Load, Ran, Summary, World};
use model::protocol::Event;

use crate::release::Release;

const VISITORS: u32 = 1_000;

pub(crate) struct Tour {
    pub(crate) world: World,
    with_puma: bool,
    /// Kept running: a held release must be there to go back to.
    releases: Vec<Release>,
    broken_promises: Vec<String>,
    cutover: Duration,
    rollback_ms: u64,
}

impl Tour {
    pub(crate) fn begin(with_puma: bool) -> Self {
        let world = World::start();
        Self {
            world,
            with_puma,
            releases: Vec::new(),
            broken_promises: Vec::new(),
            cutover: Duration::ZERO,
            rollback_ms: 0,
        }
    }

    /// All of it; the promises that did not hold.
    pub(crate) fn run(&mut self) -> Vec<String> {
        self.first_release();
        let load = self.world.load("/");
        load.goes_on_for(50);
        self.cut_over(&load);
        self.refuse_a_broken_release(&load);
        self.canary(&load);
        self.roll_back(&load);
        let seen = load.finish();
        self.report(&seen);
        std::mem::take(&mut self.broken_promises)
    }

    fn first_release(&mut self) {
        heading("A first release");
        let target = self.start("v1");
        let routed =
            ["deploy", "shop", "--target", &target, "--host", "shop.test", "--visitor-header", "x-user"];
        self.run_command(&[&routed[..], &["--release", "v1"]].concat(), 0);
    }

    fn cut_over(&mut self, load: &Load) {
        heading("A cutover, under load");
        let target = self.start("v2");
        let started = Instant::now();
        self.run_command(&["deploy", "shop", "--target", &target, "--release", "v2", "--bake", "0s"], 0);
        self.cutover = started.elapsed();
        load.goes_on_for(50);
        let served = self.world.get("/").text();
        self.promise(served == "v2", "after the deploy, v2 serves");
    }

    fn refuse_a_broken_release(&mut self, load: &Load) {
        heading("A broken release: it redirects its own health check");
        let broken = Release::broken("v3", self.with_puma);
        let target = broken.target();
        let ran = self.run_command(&["deploy", "shop", "--target", &target, "--release", "v3"], 5);
        self.promise(ran.stderr().contains("redirect"), "the refusal names its cause");
        load.goes_on_for(50);
        let served = self.world.get("/").text();
        self.promise(served == "v2", "a refused release changes nothing: v2 still serves");
    }

    fn canary(&mut self, load: &Load) {
        heading("A canary for 5 %, then for 50 %");
        let target = self.start("v4");
        self.run_command(
            &["canary", "start", "shop", "--target", &target, "--release", "v4", "--weight", "5%"],
            0,
        );
        let few = self.canary_visitors();
        self.run_command(&["canary", "set", "shop", "50%"], 0);
        let half = self.canary_visitors();
        println!("   of {VISITORS} visitors, {} saw v4 at 5 % and {} at 50 %", few.len(), half.len());
        self.promise((20..=80).contains(&few.len()), "5 % of the visitors see the canary");
        self.promise((430..=570).contains(&half.len()), "50 % of the visitors see the canary");
        self.promise(
            few.iter().all(|visitor| half.contains(visitor)),
            "raising the weight moves nobody back",
        );
        load.goes_on_for(50);
        self.run_command(&["canary", "promote", "shop"], 0);
        let served = self.world.get("/").text();
        self.promise(served == "v4", "the promoted canary serves everybody");
    }

    fn roll_back(&mut self, load: &Load) {
        heading("A rollback: no boot, no gate");
        let ran = self.run_command(&["rollback", "shop", "--json"], 0);
        let switched_ms = ran.events().into_iter().find_map(|event| match event {
            Event::Switched { at_ms, .. } => Some(at_ms),
            _ => None,
        });
        load.goes_on_for(50);
        let (asked_ms, switched_ms) = (ran.started_ms(), switched_ms.unwrap_or(u64::MAX));
        self.rollback_ms = switched_ms.saturating_sub(asked_ms);
        println!("   {} ms from the command's start until every new request goes to v2", self.rollback_ms);
        let served = self.world.get("/").text();
        self.promise(served == "v2", "after the rollback, v2 serves again");
    }

    fn report(&mut self, seen: &Summary) {
        heading("What was measured");
        println!("   requests          {}", seen.requests);
        println!("   failed            {}", seen.failed);
        println!("   cutover           {} ms, gate and drain included", self.cutover.as_millis());
        println!("   rollback          {} ms", self.rollback_ms);
        println!("   answered by       {:?}", seen.by_release);
        self.promise(seen.failed == 0, &format!("no request was lost: {seen}"));
    }

    fn start(&mut self, name: &'static str) -> String {
        let release = Release::good(name, self.with_puma);
        let target = release.target();
        self.releases.push(release);
        target
    }

    /// Shows the command and what it says; notes an unexpected exit code.
    fn run_command(&mut self, args: &[&str], code: i32) -> Ran {
        println!("$ agentctl {}", args.join(" "));
        let ran = self.world.operator().run(args);
        for line in ran.stdout().lines().chain(ran.stderr().lines()) {
            println!("   {line}");
        }
        self.promise(ran.code() == Some(code), &format!("`agentctl {}` ends with {code}", args.join(" ")));
        ran
    }

    /// Who of the visitors sees v4.
    fn canary_visitors(&self) -> Vec<u32> {
        let sees_canary = |visitor: &u32| {
            let ask = Ask::get("shop.test", "/").header("x-user", &visitor.to_string());
            ask.at(self.world.http()).text() == "v4"
        };
        (0..VISITORS).filter(sees_canary).collect()
    }

    fn promise(&mut self, held: bool, promise: &str) {
        println!("   {} {promise}", if held { "✓" } else { "✗" });
        if !held {
            self.broken_promises.push(promise.to_owned());
        }
    }
}

fn heading(text: &str) {
    println!("\n── {text}");
}
