# A sample for Nomad, with the podman driver and the image of the Containerfile. It was not tried with a Nomad.
job "relay" {
  type = "service"

  group "relay" {
    count = 2

    # Nomad takes the service out of its catalogue, then waits for its users to notice, then sends the signal.
    shutdown_delay = "5s"

    network {
      port "db" { to = 5432 }
    }

    service {
      name     = "relay-db"
      port     = "db"
      provider = "nomad"

      check {
        type     = "tcp"
        interval = "10s"
        timeout  = "2s"
      }
    }

    update {
      max_parallel     = 1
      min_healthy_time = "10s"
    }

    task "relay" {
      driver = "podman"

      # drain + 15 s. A Nomad client allows 30 s at most unless its own configuration says more: set max_kill_timeout of its
      # block "client" to this, else it kills relay in the middle of the drain.
      kill_timeout = "75s"

      config {
        image           = "localhost/relay:0.1.0"
        args            = ["up", "/local/relay.toml", "--control", "none"]
        ports           = ["db"]
        readonly_rootfs = true
        cap_drop        = ["ALL"]
      }

      template {
        destination = "local/relay.toml"
        data        = <<TOML
[defaults]
drain = 60
drain_spread = 30

[tunnels.db]
listen = "0.0.0.0:5432"
target = "db.internal:5432"
required = true
TOML
      }

      resources {
        cpu    = 100
        memory = 256
      }
    }
  }
}
