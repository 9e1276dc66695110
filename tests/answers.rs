//! What a service says for itself beyond its routes: error pages, log fields, metrics, the paths of its cookies.

use std::fs;
use std::path::Path;

use harness::{Ask, Recorder, World, eventually};

/// Nobody listens there.
fn dead_target() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    listener.local_addr().expect("it is bound").to_string()
}

fn pages(dir: &Path, files: &[(&str, &str)]) -> String {
    let pages = dir.join("pages");
    fs::create_dir_all(&pages).expect("a directory of the story's own");
    for (name, text) in files {
        fs::write(pages.join(name), text).expect("a page");
    }
    pages.to_str().expect("a path of ASCII").to_owned()
}

/// What the daemon keeps of them.
fn copies(world: &World) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(world.daemon.state_dir().join("pages")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// A world whose only release has died, with these pages.
fn broken(files: &[(&str, &str)]) -> World {
    let world = World::start();
    let recorder = Recorder::start();
    let pages = pages(world.dir(), files);
    world.deploy_with(&recorder.target(), &["--error-pages", &pages]);
    drop(recorder);
    world
}

#[test]
fn pages_of_the_service_replace_ours_but_never_the_apps() {
    let world = World::start();
    let recorder = Recorder::answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 3\r\n\r\napp");
    let pages =
        pages(world.dir(), &[("5xx.html", "<b>{{ .Status }}</b>{{ .RequestId }}"), ("404.html", "nope")]);
    world.deploy_with(&recorder.target(), &["--error-pages", &pages, "--path-prefix", "/app"]);
    assert_eq!(world.get("/app/x").text(), "app", "the app's own page");
    assert!(world.get("/elsewhere").text().contains("There is nothing at this address"), "no service has it");
    drop(recorder);
    let ask = Ask::get("shop.test", "/app/x").header("x-request-id", "from-the-client");
    let answer = ask.at(world.http());
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (502, "<b>502</b>from-the-client"));
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(answer.header("cache-control"), "no-store");
    let json = ask.header("accept", "application/json").at(world.http());
    assert_eq!((json.status.as_u16(), json.json()["reason"].as_str()), (502, Some("connect_failed")));
}

#[test]
fn pages_outlive_their_directory_and_a_restart() {
    let mut world = broken(&[("502.html", "our page")]);
    assert_eq!(world.get("/").text(), "our page");
    fs::remove_dir_all(world.dir().join("pages")).expect("deploy tools do this");
    world.daemon.kill_9();
    world.daemon.start_again();
    assert_eq!(world.get("/").text(), "our page");
    world.agentctl(["remove", "shop"]).succeeds();
    assert_eq!(copies(&world), Vec::<std::path::PathBuf>::new(), "nothing is left behind");
}

#[test]
fn a_maintenance_page_says_what_the_operator_said() {
    let world = World::start();
    let recorder = Recorder::start();
    let text = "{{ if .Message }}<p>{{ .Message }}</p>{{ else }}<p>later</p>{{ end }}";
    let pages = pages(world.dir(), &[("503.html", text)]);
    world.deploy_with(&recorder.target(), &["--error-pages", &pages]);
    world.agentctl(["stop", "shop", "--message", "Back at <9>"]).succeeds();
    let page = world.get("/");
    assert_eq!((page.status.as_u16(), page.text().as_str()), (503, "<p>Back at &lt;9&gt;</p>"));
    world.agentctl(["stop", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "<p>later</p>");
    world.agentctl(["resume", "shop"]).succeeds();
    assert_eq!(world.get("/").text(), "recorded");
}

#[test]
fn bad_pages_are_refused_before_the_gate() {
    let world = World::start();
    let recorder = Recorder::start();
    world.deploy(&recorder.target());
    for (file, text, want) in [
        ("503.html", "a\n{{ .Nothing }}", "line 2: `.Nothing` is not known; there are `.Message`"),
        ("index.html", "hello", "there is no error page in"),
    ] {
        let dir = world.dir().join(file);
        fs::create_dir(&dir).expect("a directory of the story's own");
        fs::write(dir.join(file), text).expect("a page");
        let args =
            ["deploy", "shop", "--target", &dead_target(), "--error-pages", dir.to_str().expect("ASCII")];
        let ran = world.operator().run(args);
        assert_eq!(ran.code(), Some(2), "{ran}");
        assert!(ran.stderr().contains(want), "{ran}");
    }
    let missing = ["deploy", "shop", "--target", &recorder.target(), "--error-pages", "/no/such/folder"];
    let ran = world.operator().run(missing);
    assert!(
        ran.code() == Some(2) && ran.stderr().contains("cannot read the error pages in /no/such/folder"),
        "{ran}"
    );
    assert_eq!(world.get("/").text(), "recorded");
}

#[test]
fn a_full_disk_refuses_the_pages_and_keeps_the_old_ones() {
    let world = broken(&[("502.html", "first")]);
    // A file in the way of the directory of copies: what a disk does when it is full, for this one write.
    let copies = world.daemon.state_dir().join("pages");
    fs::remove_dir_all(&copies).expect("it was kept");
    fs::write(&copies, "in the way").expect("a file");
    let other = world.dir().join("other");
    fs::create_dir(&other).expect("a directory");
    fs::write(other.join("502.html"), "second").expect("a page");
    let recorder = Recorder::start();
    let args =
        ["deploy", "shop", "--target", &recorder.target(), "--error-pages", other.to_str().expect("ASCII")];
    let ran = world.operator().run(args);
    assert!(ran.code() != Some(0) && ran.stderr().contains("cannot keep a copy of the error pages"), "{ran}");
    assert_eq!(world.get("/").text(), "first");
}

#[test]
fn header_fields_are_logged_on_request() {
    let world = World::start();
    let recorder = Recorder::answering(
        b"HTTP/1.1 200 OK\r\nX-Runtime: 0.1\r\nX-Twice: a\r\nX-Twice: b\"\r\nContent-Length: 0\r\n\r\n",
    );
    let fields = [
        "--log-request-header=Cache-Control,User-Agent",
        "--log-request-header=X-Missing",
        "--log-response-header=X-Runtime,x-twice",
    ];
    world.deploy_with(&recorder.target(), &fields);
    let ask = Ask::get("shop.test", "/").header("cache-control", "no-cache").header("user-agent", "story");
    assert_eq!(ask.at(world.http()).status, 200);
    let line = eventually("the line is logged", || {
        let mut lines = world.daemon.access_log();
        lines.retain(|line| line["service"] == "shop");
        lines.pop().ok_or_else(|| "no line".to_owned())
    });
    for (name, want) in [
        ("req_cache_control", "no-cache"),
        ("req_user_agent", "story"),
        ("req_x_missing", ""),
        ("resp_x_runtime", "0.1"),
        ("resp_x_twice", "a,b\""),
    ] {
        assert_eq!(line[name], want, "{name} in {line}");
    }
}

#[test]
fn excluded_paths_are_logged_but_not_counted() {
    let world = World::start();
    let recorder = Recorder::start();
    world.deploy_with(&recorder.target(), &["--path-prefix", "/app", "--exclude-metrics-path", "/ping"]);
    for path in ["/app/ping", "/app/ping?x=1", "/app/ping/more", "/app/other"] {
        assert_eq!(world.get(path).status, 200, "{path}");
    }
    let line =
        |text: &str| text.starts_with("portcullis_requests_total{") && text.contains("service=\"shop\"");
    let metrics = Ask::get("localhost", "/metrics").at(world.daemon.metrics()).text();
    let counted: u64 = metrics
        .lines()
        .filter(|text| line(text))
        .filter_map(|text| text.rsplit(' ').next()?.parse::<u64>().ok())
        .sum();
    assert_eq!(counted, 2, "{metrics}");
    eventually("all four are logged", || {
        let logged = world.daemon.access_log().iter().filter(|line| line["service"] == "shop").count();
        if logged == 4 { Ok(()) } else { Err(format!("{logged} lines")) }
    });
}

#[test]
fn cookies_stay_below_the_prefix_of_their_app() {
    let world = World::start();
    let recorder = Recorder::answering(
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Path=/; HttpOnly\r\nSet-Cookie: b=2; Domain=other.test\r\n\
          Set-Cookie: __Host-c=3; Path=/; Secure\r\nContent-Length: 0\r\n\r\n",
    );
    let cookies = |path: &str| {
        let answer = world.get(path);
        let all = answer.headers.get_all("set-cookie").iter();
        all.map(|value| value.to_str().expect("ASCII").to_owned()).collect::<Vec<_>>()
    };
    let plain = ["a=1; Path=/; HttpOnly", "b=2; Domain=other.test", "__Host-c=3; Path=/; Secure"];
    world.deploy_with(&recorder.target(), &["--path-prefix", "/api,/"]);
    assert_eq!(cookies("/api/x"), plain);
    world.deploy_with(&recorder.target(), &["--scope-cookie-paths"]);
    assert_eq!(cookies("/api/x"), ["a=1; Path=/api; HttpOnly", plain[1], plain[2]]);
    assert_eq!(cookies("/x"), plain, "nothing was taken off");
    world.deploy_with(&recorder.target(), &["--strip-path-prefix=false"]);
    assert_eq!(cookies("/api/x"), plain, "the app knows its prefix");
}
