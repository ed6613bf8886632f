from nextscale.commands.serve import Serve

raise SystemExit(Serve(host="0.0.0.0").run())
