package domain_test

import (
	"testing"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirtxml"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestStillXML(t *testing.T) {
	p := plan()
	p.Data = nil
	xml, err := domain.XML(p, compute.DomainFiles{Disk: files.Disk, Seed: files.Seed}, domain.Host{Arch: "x86_64", Accel: domain.TCG, Emulator: "/qemu", Machine: "q35", ConsoleDir: "/c"})
	require.NoError(t, err)
	s, err := domain.StillXML(xml, compute.StillCheckpoint{Memory: "/m", Volumes: []string{p.Disk.Volume}})
	require.NoError(t, err)
	var snap libvirtxml.DomainSnapshot
	require.NoError(t, snap.Unmarshal(s))
	require.Equal(t, []string{"external", "/m"}, []string{snap.Memory.Snapshot, snap.Memory.File})
	how := map[string]string{}
	for _, d := range snap.Disks.Disks {
		how[d.Name] = d.Snapshot
	}
	require.Equal(t, "manual", how[domain.RootDisk])
	require.Len(t, how, 2)
	for name, h := range how {
		require.True(t, name == domain.RootDisk || h == "no", "the seed %s is %q", name, h)
	}

	// One that has layers is switched instead.
	over := []compute.SwitchedDisk{{Volume: p.Disk.Volume, To: compute.QCOW2("/over")}}
	s, err = domain.StillXML(xml, compute.StillCheckpoint{Memory: "/m", Disks: over})
	require.NoError(t, err)
	snap = libvirtxml.DomainSnapshot{}
	require.NoError(t, snap.Unmarshal(s))
	for _, d := range snap.Disks.Disks {
		if d.Name == domain.RootDisk {
			require.Equal(t, []string{"external", "qcow2", "/over"}, []string{d.Snapshot, d.Driver.Type, d.Source.File.File})
		}
	}
	_, err = domain.StillXML(xml, compute.StillCheckpoint{Memory: "/m", Disks: over, Volumes: []string{api.NewID()}})
	require.Equal(t, problem.NotFound, problem.KindOf(err))
	_, err = domain.StillXML(xml, compute.StillCheckpoint{Memory: "/m"})
	require.Equal(t, problem.Conflict, problem.KindOf(err), "a disk would be missing")
	_, err = domain.StillXML(xml, compute.StillCheckpoint{Memory: "/m", Volumes: []string{p.Disk.Volume, api.NewID()}})
	require.Equal(t, problem.NotFound, problem.KindOf(err))

	// The mark of how it went on comes on top of what is there now.
	r, err := domain.Restored(xml, xml, "web", `then "x"`)
	require.NoError(t, err)
	var d libvirtxml.Domain
	require.NoError(t, d.Unmarshal(r))
	require.Contains(t, d.Metadata.XML, domain.Namespace)
	require.Contains(t, d.Metadata.XML, domain.RestoredNamespace)
	as, err := domain.ReadRestored(`<nextstack-restored:restored xmlns:nextstack-restored="https://nextstack.io/domain/restored/1" as="then &#34;x&#34;"/>`)
	require.NoError(t, err)
	require.Equal(t, `then "x"`, as)
	_, err = domain.ReadRestored("<")
	require.Error(t, err)
}
