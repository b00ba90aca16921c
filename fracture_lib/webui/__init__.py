"""The page: tabs for visitors and endpoints for programs. `launch.main` serves it."""
