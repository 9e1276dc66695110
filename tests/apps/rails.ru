# A small real Rails app in one file: what a release looks like from outside, good or bad.
#
# RELEASE names the release. BAD makes it one of the releases that must never serve:
#   blocked_host, missing_route, redirect, pending_migration, silent, broken, slow_boot.
# The harness holds the other end of stdin: when the tests end, however they end, so does this Puma.
Thread.new { $stdin.read; exit!(0) } if ENV["HARNESS_HOLDS_STDIN"]

BAD = ENV["BAD"].to_s
RELEASE = ENV.fetch("RELEASE", "unnamed")
BOOTED_AT = Process.clock_gettime(Process::CLOCK_MONOTONIC)
SLOW_BOOT_S = ENV.fetch("SLOW_BOOT_S", "3").to_f

require "logger" # before Rails 6.1, which forgets to
require "digest"
require "rails"
require "action_controller/railtie"
require "action_cable/engine"

if BAD == "pending_migration"
  require "tmpdir"
  ROOT = Dir.mktmpdir("rails-app")
  FileUtils.mkdir_p("#{ROOT}/db/migrate")
  File.write("#{ROOT}/db/migrate/20260101000000_create_orders.rb", <<~MIGRATION)
    class CreateOrders < ActiveRecord::Migration[6.1]
      def change
        create_table(:orders) { |t| t.string :number }
      end
    end
  MIGRATION
  ENV["DATABASE_URL"] = "sqlite3:#{ROOT}/db/app.sqlite3"
  require "active_record/railtie"
  Dir.chdir(ROOT) # where Active Record looks for db/migrate
  at_exit { FileUtils.rm_rf(ROOT) }
else
  ROOT = __dir__
end

class App < Rails::Application
  config.root = ROOT
  config.eager_load = true
  config.secret_key_base = "0" * 64
  config.logger = Logger.new($stderr)
  config.log_level = :warn
  config.hosts.clear
  config.hosts << "another-shop.example" if BAD == "blocked_host"
  config.action_cable.mount_path = "/cable"
  config.action_cable.disable_request_forgery_protection = true
  config.action_cable.cable = { "adapter" => "async" }
  # Production answers a blocked host with an empty 403; development says so on a page.
  config.consider_all_requests_local = true if ENV["SHOW_ERRORS"]
  if BAD == "pending_migration"
    config.consider_all_requests_local = true
    config.active_record.migration_error = :page_load
  end

  routes.append do
    get "/up", to: "app#up" unless BAD == "missing_route"
    get "/", to: "app#root"
    get "/slow", to: "app#slow"
    match "/upload", to: "app#upload", via: %i[put post]
    get "/headers", to: "app#headers_seen"
    get "/events", to: "events#index"
  end
end

class AppController < ActionController::Base
  before_action do
    response.set_header("X-Release", RELEASE)
    response.set_header("X-Served-At-Ms", (Time.now.to_f * 1000).round.to_s)
  end

  def up
    case BAD
    when "redirect" then redirect_to "https://#{request.host}/up", status: :moved_permanently
    when "silent" then sleep
    when "broken" then render plain: "the payment provider's key is missing", status: :internal_server_error
    when "slow_boot"
      age = Process.clock_gettime(Process::CLOCK_MONOTONIC) - BOOTED_AT
      render plain: "up", status: age < SLOW_BOOT_S ? :service_unavailable : :ok
    else render plain: "up"
    end
  end

  def root = render(plain: RELEASE)

  def slow
    sleep params[:s].to_f
    render plain: "slow answer of #{RELEASE}"
  end

  def upload
    body = request.raw_post
    render json: { release: RELEASE, bytes: body.bytesize, sha256: Digest::SHA256.hexdigest(body) }
  end

  def headers_seen
    render json: {
      remote_ip: request.remote_ip, ssl: request.ssl?, host: request.host_with_port, request_id: request.request_id,
      ip: request.ip, scheme: request.scheme, url: request.url,
      seen: request.env.select { |name, _| name.start_with?("HTTP_") },
    }
  end
end

# Server-sent events until the other side goes away.
class EventsController < ActionController::Base
  include ActionController::Live

  def index
    response.headers["Content-Type"] = "text/event-stream"
    # Rack::ETag would otherwise wait for the end of the stream to hash it.
    response.headers["Last-Modified"] = Time.now.httpdate
    response.headers["X-Release"] = RELEASE
    loop do
      response.stream.write("data: #{RELEASE}\n\n")
      sleep 0.1
    end
  rescue ActionController::Live::ClientDisconnected, IOError
    nil
  ensure
    response.stream.close
  end
end

module ApplicationCable
  class Connection < ActionCable::Connection::Base; end
  class Channel < ActionCable::Channel::Base; end
end

class EchoChannel < ApplicationCable::Channel
  def say(data)
    transmit({ "text" => data["text"], "release" => RELEASE })
  end
end

App.initialize!
run App
