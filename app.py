"""Entry point of the page, on a machine of your own (`python app.py`) and in a Space."""

from fracture_lib.webui.launch import main

if __name__ == "__main__":
    main()
