"""Takes identities from the Workload API with the package `spiffe`.

    peer.py fetch AUDIENCE            prints the X.509-SVID, the JWT-SVIDs, and what validating the first says
    peer.py validate AUDIENCE TOKEN   prints the ID, or fails
    peer.py rotations N               prints N serial numbers of an X.509 source, each with its successor there in time
"""

import sys
import threading
from datetime import datetime, timezone

from spiffe import JwtSource, JwtSvid, SpiffeId, WorkloadApiClient, X509Source


def fetch(audience):
    with WorkloadApiClient() as client:
        svid = client.fetch_x509_svid()
        print("x509", svid.spiffe_id)
        for bundle in client.fetch_x509_bundles().bundles:
            print("bundle", bundle.trust_domain.name, len(bundle.x509_authorities))
        svids = client.fetch_jwt_svids(audience={audience})
        for svid in svids:
            print("jwt", svid.spiffe_id, sorted(svid.audience))
        print("valid", client.validate_jwt_svid(svids[0].token, audience).spiffe_id)
    with JwtSource() as source:
        own = source.fetch_svid(audience={audience}, subject=SpiffeId(str(svids[-1].spiffe_id)))
        bundle = source.get_bundle_for_trust_domain(own.spiffe_id.trust_domain)
        print("source", JwtSvid.parse_and_validate(own.token, bundle, {audience}).spiffe_id)


def validate(audience, token):
    with WorkloadApiClient() as client:
        print("valid", client.validate_jwt_svid(token, audience).spiffe_id)


def rotations(count):
    changed = threading.Event()
    with X509Source() as source:
        source.subscribe_for_updates(changed.set)
        seen = []
        while len(seen) < count:
            leaf = source.svid.leaf
            if leaf.not_valid_after_utc <= datetime.now(timezone.utc):
                raise RuntimeError("the identity has expired")
            if str(leaf.serial_number) not in seen:
                seen.append(str(leaf.serial_number))
            changed.wait(0.05)
            changed.clear()
        print(len(seen), "identities")


def main(command, *args):
    if command == "fetch":
        fetch(*args)
    elif command == "validate":
        validate(*args)
    elif command == "rotations":
        rotations(int(args[0]))
    else:
        raise SystemExit(f"unknown command {command}")


main(*sys.argv[1:])
