from fracture_lib.cli import main

raise SystemExit(main())
