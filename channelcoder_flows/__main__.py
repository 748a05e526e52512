"""`python -m channelcoder_flows` is the command `channelcoder`."""

import sys

from channelcoder_flows.cli import main

sys.exit(main())
