//! What was acknowledged survives: a kill at any moment, a full disk, a disk that became read-only.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use harness::{App, Daemon, DaemonOptions, Load, LoadPlan, Puma, Ran, World};
use model::protocol::Event;

const DAEMONS: u64 = 8;
const KILLS_EACH: u64 = 25;

#[test]
fn two_hundred_kills_lose_no_acknowledged_change() {
    let pumas = [Puma::start(App::Rack, "a"), Puma::start(App::Rack, "b")];
    let targets = pumas.each_ref().map(Puma::target);
    thread::scope(|scope| {
        for seed in 0..DAEMONS {
            let targets = &targets;
            scope.spawn(move || kill_and_compare(seed, targets));
        }
    });
}

/// What a restart may not lose.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kept {
    stable: String,
    canary: Option<(String, String)>,
}

fn kill_and_compare(seed: u64, targets: &[String; 2]) {
    let mut world = World::start();
    let mut dice = Dice(seed);
    world.deploy(&targets[0]);
    let mut before = kept(&world);
    let mut acknowledged_changes = 0;
    for n in 0..KILLS_EACH {
        let (args, after) = change(&mut dice, &before, targets);
        let operation = world.operator().start(["--json"].into_iter().chain(args.iter().map(String::as_str)));
        // Somewhere between before the first byte and after the last one.
        let longest_ms = if args[0] == "deploy" || args[1] == "start" { 1200 } else { 60 };
        thread::sleep(Duration::from_millis(dice.below(longest_ms)));
        world.daemon.kill_9();
        let ran = Ran::of(operation);
        let acknowledged = ran.code() == Some(0) || switched(&ran);
        world.daemon.start_again();
        let found = kept(&world);
        if acknowledged {
            acknowledged_changes += 1;
            assert_eq!(found, after, "seed {seed}, kill {n}: lost what was acknowledged: {args:?}\n{ran}");
        } else {
            assert!(
                found == before || found == after,
                "seed {seed}, kill {n}: {args:?} gave {found:?}\n{ran}"
            );
        }
        assert_eq!(world.get("/").status, 200, "seed {seed}, kill {n}: serves at once after the restart");
        before = found;
    }
    assert!(acknowledged_changes > 0, "seed {seed}: every kill came too early to prove anything");
}

/// A change that is allowed now, and what it leads to.
fn change(dice: &mut Dice, now: &Kept, targets: &[String; 2]) -> (Vec<String>, Kept) {
    let other = targets.iter().find(|target| **target != now.stable).expect("two targets");
    let weight = format!("{}%", 1 + dice.below(99));
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let with_canary = Some((other.clone(), weight.clone()));
    if now.canary.is_some() && dice.below(4) > 0 {
        return (words(&format!("canary set shop {weight}")), Kept { canary: with_canary, ..now.clone() });
    }
    if now.canary.is_none() && dice.below(2) == 0 {
        let start = format!("canary start shop --target {other} --weight {weight}");
        return (words(&start), Kept { canary: with_canary, ..now.clone() });
    }
    let deploy = format!("deploy shop --target {other} --bake 0s --replace-canary");
    (words(&deploy), Kept { stable: other.clone(), canary: None })
}

fn kept(world: &World) -> Kept {
    let status = world.daemon.status();
    let shop = status.services.iter().find(|service| service.name == "shop").expect("shop is still there");
    let canary =
        shop.canary.as_ref().map(|canary| (canary.release.targets[0].target.clone(), canary.weight.clone()));
    Kept { stable: shop.stable.targets[0].target.clone(), canary }
}

/// The agent said that traffic had moved, whatever became of the rest of its answer.
fn switched(ran: &Ran) -> bool {
    ran.stdout().lines().any(|line| matches!(serde_json::from_str(line), Ok(Event::Switched { .. })))
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        // Steele, Lea and Flood's SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[test]
fn a_damaged_state_file_falls_back_to_the_one_before() {
    let mut world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy_with(&puma.target(), &["--release", "first"]);
    world.deploy_with(&puma.target(), &["--release", "second"]);
    world.daemon.stop();
    let state = world.daemon.state_dir().join("state.json");
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() / 2]).unwrap();
    world.daemon.start_again();
    assert_eq!(world.get("/").text(), "v1");
    assert!(world.daemon.log().contains("state.json"), "it says so: {}", world.daemon.log());
    let aside = std::fs::read_dir(world.daemon.state_dir()).unwrap().flatten();
    let kept_aside = aside
        .into_iter()
        .any(|file| std::fs::read(file.path()).is_ok_and(|bytes| bytes == whole[..whole.len() / 2]));
    assert!(kept_aside, "the damaged file is kept for whoever wants to know");
}

#[test]
fn a_state_of_a_newer_version_is_not_touched() {
    let mut world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    world.daemon.stop();
    let path = world.daemon.state_dir().join("state.json");
    let mut state: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    state["version"] = 9_999.into();
    let newer = serde_json::to_vec(&state).unwrap();
    std::fs::write(&path, &newer).unwrap();
    let (status, log) = Daemon::start_in_vain(world.dir(), &DaemonOptions::default());
    assert!(!status.success() && log.contains("9999"), "{status}: {log}");
    assert_eq!(std::fs::read(&path).unwrap(), newer);
}

#[test]
fn the_state_is_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::start();
    let puma = Puma::start(App::Rack, "v1");
    world.deploy(&puma.target());
    let mode = std::fs::metadata(world.daemon.state_dir().join("state.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_stop_and_a_start_bring_everything_back() {
    let mut world = World::start();
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy_with(&v1.target(), &["--release", "one"]);
    world.deploy_with(&v2.target(), &["--release", "two"]);
    let before = world.daemon.status();
    assert!(world.daemon.stop().success());
    world.daemon.start_again();
    let after = world.daemon.status();
    let shape = |status: &model::protocol::Status| {
        let shop = &status.services[0];
        let held = shop.held.as_ref().map(|held| held.release.clone());
        (status.generation, shop.stable.release.clone(), held, shop.hosts.clone(), shop.policy.clone())
    };
    assert_eq!(shape(&after), shape(&before));
    world.agentctl(["rollback", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "v1");
}

/// A daemon whose state directory is a small disk of its own, seen by no other process.
fn on_a_small_disk() -> Option<World> {
    let can_mount = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success());
    if !can_mount {
        // Loud: this promise went unchecked on this machine.
        eprintln!("SKIPPED: needs a mount namespace (run the tests as root)");
        return None;
    }
    // $0 is the rest's first word, the daemon; its arguments name the state directory.
    let script = r#"for word; do [ "$last" = --state-dir ] && dir=$word; last=$word; done
        mkdir -p "$dir" && mount -t tmpfs -o size=64k,mode=0700 tmpfs "$dir" && exec "$@""#;
    let wrapper = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"];
    Some(World::with(DaemonOptions { wrapper: wrapper.map(Into::into).to_vec(), ..DaemonOptions::default() }))
}

/// The small disk, seen through the daemon's own mount namespace.
fn disk(world: &World) -> std::path::PathBuf {
    let inside = world.daemon.state_dir();
    Path::new("/proc")
        .join(world.daemon.pid().to_string())
        .join("root")
        .join(inside.strip_prefix("/").expect("a temp directory's path is absolute"))
}

/// A change is refused with a clear error, and traffic does not notice.
fn refuses_changes(world: &World, other: &Puma) {
    let load = Load::start(world.http(), LoadPlan::default());
    let target = other.target();
    let refused = world.agentctl(["deploy", "shop", "--target", &target, "--bake", "0s"]).fails_with(1);
    assert!(refused.stderr().contains("state"), "{refused}");
    let start = ["canary", "start", "shop", "--target", &target, "--weight", "5%"];
    world.agentctl(start).fails_with(1);
    load.goes_on_for(20);
    let seen = load.finish().lost_nothing();
    assert_eq!(seen.releases(), ["v1"], "{seen}");
    assert_eq!(world.daemon.status().services[0].canary, None);
}

#[test]
fn a_full_disk_refuses_changes_and_keeps_serving() {
    let Some(world) = on_a_small_disk() else { return };
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy(&v1.target());
    let ballast = disk(&world).join("ballast");
    // Ends with "no space left": that is what it is for.
    let filled = std::fs::write(&ballast, vec![0; 1 << 20]);
    assert!(filled.is_err(), "the disk is full now");
    refuses_changes(&world, &v2);
    std::fs::remove_file(ballast).unwrap();
    world.deploy(&v2.target());
    assert_eq!(world.get("/").text(), "v2", "space again, changes again");
}

fn in_its_namespace(world: &World, args: &[&str]) {
    let pid = world.daemon.pid().to_string();
    let output = Command::new("nsenter").args(["--target", &pid, "--mount"]).args(args).output();
    let output = output.expect("util-linux is installed (bin/test installs it)");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_read_only_disk_refuses_changes_and_keeps_serving() {
    let Some(world) = on_a_small_disk() else { return };
    let (v1, v2) = (Puma::start(App::Rack, "v1"), Puma::start(App::Rack, "v2"));
    world.deploy(&v1.target());
    // Mounted over itself: a remount would fail while the daemon holds its lock file open for writing.
    let state_dir = world.daemon.state_dir().display().to_string();
    in_its_namespace(&world, &["mount", "--bind", &state_dir, &state_dir]);
    in_its_namespace(&world, &["mount", "-o", "remount,bind,ro", &state_dir]);
    refuses_changes(&world, &v2);
    in_its_namespace(&world, &["umount", &state_dir]);
    world.deploy(&v2.target());
    assert_eq!(world.get("/").text(), "v2", "writable again, changes again");
}
