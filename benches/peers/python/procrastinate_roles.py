"""The processes of procrastinate. It wants its `App` in another module than the main one."""

import asyncio
import sys

from procrastinate_parts import main
from roles import Task

asyncio.run(main(Task.of(sys.argv[1:])))
