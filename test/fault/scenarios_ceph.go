package fault

import (
	"slices"

	"github.com/nextstack/nextstack/api"
)

// inCeph returns scenarios of volumes whose pool keeps snapshots by itself, under names.
func inCeph() map[string][]Scenario {
	data := makeVolume("data", "fast", nil)
	alone := []Accept{cephOn(), data}
	run := []Accept{cephOn(), createVM, data, attach("data", "web1")}
	halt := []Accept{cephOn(), createVM, stopVM, data, attach("data", "web1")}
	also := func(before []Accept, more ...Accept) []Accept { return append(slices.Clone(before), more...) }
	kept := then(snap("s1", "data"), written("one ", "data")) // what a snapshot of it does not have
	more := then(snap("s2", "data"), written("two ", "data"))
	from := func(change func(*api.VolumeCreate)) Accept {
		return makeVolume("copy", "", func(r *api.VolumeCreate) { r.Size, r.Pool = 0, ""; change(r) })
	}
	return map[string][]Scenario{
		api.OpVolumeCreate: {
			{Name: "volume.create, Ceph", Prepare: []Accept{cephOn()}, Accept: data},
			{Name: "volume.create from a snapshot, Ceph", Prepare: also(run, kept), Accept: from(func(r *api.VolumeCreate) { r.Snapshot = "s1" }), Check: shows("copy", "")},
			{Name: "volume.create from a volume, Ceph", Prepare: also(alone, kept), Accept: from(func(r *api.VolumeCreate) { r.Volume = "data" }), Check: shows("copy", "one ")},
		},
		api.OpImageCapture: {
			{Name: "image.capture of a volume, Ceph", Prepare: also(halt, kept), Accept: capture(api.ImageCreate{Volume: "data"}), Check: captured("one ")},
			{Name: "image.capture of a snapshot, Ceph", Prepare: also(run, kept), Accept: capture(api.ImageCreate{Snapshot: "s1"}), Check: captured("")},
		},
		api.OpVolumeExport: {{Name: "volume.export of a snapshot, Ceph", Prepare: also(run, kept), Accept: export("data", api.VolumeExport{Snapshot: "s1"}), Check: exported("")}},
		api.OpVolumeAttach: {{Name: "volume.attach, Ceph", Prepare: []Accept{cephOn(), createVM, data}, Accept: attach("data", "web1")}},
		api.OpVolumeResize: {
			{Name: "volume.resize, Ceph", Prepare: run, Accept: grow("data"), TurnsAt: "grow", Check: shows("data", "")},
			{Name: "volume.resize, Ceph, stopped", Prepare: halt, Accept: grow("data"), TurnsAt: "grow", Check: shows("data", "")},
		},
		api.OpVolumePurge: {{
			Name: "volume.purge with snapshots, Ceph", Prepare: also(alone, snap("s1", "data"), snap("s2", "data"), revert("s1", api.SnapshotRevert{}), snap("s3", "data")),
			Accept: discard("data", api.VolumeDelete{Now: true, Snapshots: true}),
		}},
		api.OpSnapshotCreate: {
			{Name: "snapshot.create, Ceph", Prepare: also(run, kept), Accept: snap("s2", "data"), Check: shows("data", "one ")},
			{Name: "snapshot.create, Ceph, stopped", Prepare: also(halt, kept), Accept: snap("s2", "data"), Check: shows("data", "one ")},
		},
		api.OpSnapshotDelete: {
			{Name: "snapshot.delete, Ceph", Prepare: also(run, kept, more), Accept: unsnap("s1"), Check: shows("data", "one two ")},
			{Name: "snapshot.delete in a branch, Ceph", Prepare: also(alone, kept, more, revert("s1", api.SnapshotRevert{})), Accept: unsnap("s1"), Check: shows("data", "")},
		},
		api.OpSnapshotRevert: {
			{Name: "snapshot.revert, Ceph", Prepare: also(run, kept, more), Accept: revert("s1", api.SnapshotRevert{Restart: true}), Check: shows("data", "")},
			{Name: "snapshot.revert of one that has grown, Ceph", Prepare: also(alone, kept, grow("data"), more), Accept: revert("s1", api.SnapshotRevert{}), Check: shows("data", "")},
		},
	}
}
