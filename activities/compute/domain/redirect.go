package domain

import (
	"reflect"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api/problem"
)

// Redirected returns the XML of a domain whose disks in a Ceph pool, which is known by the secret, are reached by the monitors and the
// user of now, and whether that is another one.
func Redirected(xml string, now compute.RBDImage) (string, bool, error) {
	d, err := read(xml)
	if err != nil || d.Devices == nil {
		return xml, false, err
	}
	want, changed := rbdSource(&now), false
	for _, disk := range d.Devices.Disks {
		if disk.Source == nil || disk.Source.Network == nil {
			continue
		}
		n := disk.Source.Network
		if n.Protocol != "rbd" || n.Auth == nil || n.Auth.Secret == nil || n.Auth.Secret.UUID != now.Secret || want.Auth == nil {
			continue
		}
		if reflect.DeepEqual(n.Hosts, want.Hosts) && n.Auth.Username == want.Auth.Username {
			continue
		}
		n.Hosts, n.Auth.Username, changed = want.Hosts, want.Auth.Username, true
	}
	if !changed {
		return xml, false, nil
	}
	out, err := d.Marshal()
	return out, true, problem.Wrap(err, problem.Internal, "a domain cannot be written as XML")
}
