# A release in a third of a second: plain Rack for stories that need many Pumas.
#
# RELEASE names the release, and BAD=redirect makes it one that must never serve, BAD=late_up one whose /up is not there for the first probes; every answer carries it in X-Release, with the time at which the app saw the request.
# The harness holds the other end of stdin: when the tests end, however they end, so does this Puma.
require "digest"
require "json"

Thread.new { $stdin.read; exit!(0) } if ENV["HARNESS_HOLDS_STDIN"]

release = ENV.fetch("RELEASE", "unnamed")
probes = 0

# Answers bytes that differ from place to place, so that a lost or doubled piece shows.
class Countdown
  def initialize(pieces, pause)
    @pieces = pieces
    @pause = pause
  end

  def each
    @pieces.times do |n|
      yield "piece #{n}\n"
      sleep @pause
    end
  end
end

# Who works at the same time: /work counts itself, in the order of arrival, and waits while the door is closed
# (/close, /open: asked of Puma itself, past the proxy). WORK_S makes every /work take that long.
crowd = { "now" => 0, "max" => 0, "order" => [] }
door_open = true
lock = Mutex.new
door = ConditionVariable.new

app = lambda do |env|
  headers = {
    "Content-Type" => "text/plain",
    "X-Release" => release,
    "X-Served-At-Ms" => (Time.now.to_f * 1000).round.to_s,
    "X-Seen-Request-Start" => env["HTTP_X_REQUEST_START"].to_s,
  }
  query = Rack::Utils.parse_query(env["QUERY_STRING"])
  case env["PATH_INFO"]
  when "/up"
    probes += 1
    if ENV["BAD"] == "late_up" && probes <= 6
      [404, headers, ["not yet"]]
    elsif ENV["BAD"] == "redirect"
      [301, headers.merge("Location" => "https://#{env["HTTP_HOST"]}/up"), []]
    else
      [200, headers, ["up"]]
    end
  when "/slow"
    sleep query.fetch("s", "1").to_f
    [200, headers, ["slow answer of #{release}"]]
  when "/work"
    lock.synchronize do
      crowd["now"] += 1
      crowd["max"] = [crowd["max"], crowd["now"]].max
      crowd["order"] << query.fetch("n", "0").to_i
      door.wait(lock) until door_open
    end
    sleep (ENV["WORK_S"] || query.fetch("s", "0")).to_f
    lock.synchronize { crowd["now"] -= 1 }
    [200, headers, [release]]
  when "/close", "/open"
    lock.synchronize do
      door_open = env["PATH_INFO"] == "/open"
      door.broadcast
    end
    [200, headers, []]
  when "/crowd"
    [200, headers.merge("Content-Type" => "application/json"), [lock.synchronize { JSON.generate(crowd) }]]
  when "/upload"
    body = env["rack.input"].read
    [200, headers, [JSON.generate("release" => release, "bytes" => body.bytesize, "sha256" => Digest::SHA256.hexdigest(body), "waited_ms" => env["puma.request_body_wait"])]]
  when "/big"
    [200, headers, ["b" * (query.fetch("mib", "1").to_i << 20)]]
  when "/stream"
    [200, headers, Countdown.new(query.fetch("n", "5").to_i, query.fetch("pause", "0.1").to_f)]
  when "/headers"
    seen = env.select { |name, _| name.start_with?("HTTP_") || %w[REQUEST_METHOD PATH_INFO QUERY_STRING REMOTE_ADDR].include?(name) }
    [200, headers.merge("Content-Type" => "application/json"), [JSON.generate(seen)]]
  when "/status"
    status = query.fetch("code").to_i
    [status, [204, 304].include?(status) ? headers.reject { |name, _| name == "Content-Type" } : headers, []]
  else
    [200, headers, [release]]
  end
end

run app
