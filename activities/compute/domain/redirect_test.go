package domain

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
)

func TestDisksOfAPoolAreRedirected(t *testing.T) {
	const xml = `<domain type="kvm"><name>a</name><devices>
		<disk type="network"><source protocol="rbd" name="vms/disk-1"><host name="10.0.0.1" port="6789"></host><auth username="old"><secret type="ceph" uuid="s1"></secret></auth></source><target dev="vda"></target></disk>
		<disk type="network"><source protocol="rbd" name="ssd/disk-2"><host name="10.0.0.9"></host><auth username="other"><secret type="ceph" uuid="s2"></secret></auth></source><target dev="vdc"></target></disk>
		<disk type="file"><source file="/a"></source><target dev="vdd"></target></disk>
	</devices></domain>`
	now := compute.RBDImage{Monitors: []string{"10.0.0.2", "10.0.0.3:3300"}, User: "new", Secret: "s1", Pool: "vms", Image: "disk-9"}
	out, changed, err := Redirected(xml, now)
	require.NoError(t, err)
	require.True(t, changed)
	require.Contains(t, out, `name="vms/disk-1"`, "which disk it is stays")
	require.Contains(t, out, `<host name="10.0.0.2"></host>`)
	require.Contains(t, out, `<host name="10.0.0.3" port="3300"></host>`)
	require.Contains(t, out, `<auth username="new">`)
	require.NotContains(t, out, "10.0.0.1")
	require.Contains(t, out, `<host name="10.0.0.9"></host>`)
	require.Contains(t, out, `<auth username="other">`)
	again, changed, err := Redirected(out, now)
	require.NoError(t, err)
	require.False(t, changed)
	require.Equal(t, out, again)
	now.Secret = "s3"
	_, changed, err = Redirected(xml, now)
	require.NoError(t, err)
	require.False(t, changed)
}
