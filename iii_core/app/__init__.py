"""The program ``iii``: one project's engine with its managed workers, composed of the core's parts and plugins."""
