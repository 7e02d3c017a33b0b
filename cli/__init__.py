"""The one console command. It parses arguments and imports a part only when that part's command runs."""
