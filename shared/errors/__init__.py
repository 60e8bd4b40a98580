"""The one error tree. Every error that a person can meet says what failed, why, and what to do.

    UnderstudyError                 exit 1
    ├── UsageError          US1xx   exit 2   the request itself is wrong
    ├── NotFoundError       US2xx   exit 3   the named thing does not exist
    ├── DeadlineError       US3xx   exit 4   it did not happen in time
    └── UnhealthyError      US4xx–US6xx  exit 5   the system cannot do it now
        ├── DeviceError             a block device or the kernel's capture
        ├── PeerError               the other end of a connection (most of US42x, US45x, US46x, US53x)
        │   ├── LocalProtocolError  our fault
        │   ├── RemoteProtocolError the peer's fault: frames, versions, order of batches
        │   └── TlsError            certificates, roles, bytes that are not TLS
        ├── StorageError            blob storage or a local disk
        │   ├── TransientError      worth another try (the only class that anything retries)
        │   │   └── ThrottledError  later, and with fewer requests at a time
        │   └── StorageRefusedError an operator must act; servers go on trying, slowly, and say so
        └── IntegrityError          data is not what it must be: digest, key, order

One module an area; all of them are one name space, and callers import from here:

    base           the trunk, and what any part may raise
    requests       what was asked: usage, names, tokens, points
    control_plane  the config server, labs, jobs, the command line
    devices        disks and capture
    peers          connections, the protocol, TLS
    storage        blob storage
    files          files and threads of this host
    setup          what keeps a host from becoming part of an installation
    spool          the process server's cache, and whose log it continues
    integrity      what lies in storage: segments, index, keys, seed disks, snapshots

Codes are unique across the tree (a unit test checks it): a subclass with its own `code` is one kind of
failure. Foreign exceptions are translated to these at the edge where they appear.
"""

from shared.errors.base import *
from shared.errors.control_plane import *
from shared.errors.devices import *
from shared.errors.files import *
from shared.errors.integrity import *
from shared.errors.peers import *
from shared.errors.requests import *
from shared.errors.setup import *
from shared.errors.spool import *
from shared.errors.storage import *
