"""Exit code 0 if the server is healthy, 1 if not: the image has no curl.

QPROBE_HEALTH_URL names another port, or https. A certificate is not checked: it is made out to the
name that clients use, and this asks the loopback address.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request

URL = os.environ.get("QPROBE_HEALTH_URL", "http://127.0.0.1:8000/health")
TIMEOUT_S = 4

context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
# Not by way of a proxy that the environment may name.
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
)
try:
    with opener.open(URL, timeout=TIMEOUT_S) as reply:
        healthy = reply.status == 200
except (OSError, urllib.error.URLError) as error:
    sys.exit(f"{URL}: {error}")
sys.exit(0 if healthy else 1)
