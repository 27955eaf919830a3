package storage_test

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/storage"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Volumes of a node of the sandbox.

var _ hand = (*farNode)(nil)

func (n *farNode) volume(v steps.VolumePlan) *steps.VolumePlan {
	pool := v.Pool.Pool
	v.Pool = n.there(v.Pool)
	if v.Image != nil && v.Image.Pool == pool {
		c := *v.Image
		c.Pool, c.PoolPath, c.PoolType, c.PoolSource = v.Pool.Pool, v.Pool.Path, v.Pool.Type, v.Pool.Source
		v.Image = &c
	}
	return &v
}

func (n *farNode) CreateVolume(ctx context.Context, v steps.VolumePlan, src storage.Source, tell func(api.Progress)) error {
	socket, stop, err := serveSource(n.dir, src)
	if err != nil {
		return err
	}
	defer stop()
	a, err := n.ask(ctx, "create", question{Volume: n.volume(v), Source: socket})
	if tell != nil && a.Told > 0 {
		tell(api.Progress{})
	}
	return err
}

func (n *farNode) GrowVolume(ctx context.Context, v steps.VolumePlan) error {
	_, err := n.ask(ctx, "grow", question{Volume: n.volume(v)})
	return err
}

func (n *farNode) FlattenVolume(ctx context.Context, v steps.VolumePlan, tell func(api.Progress)) error {
	a, err := n.ask(ctx, "flatten", question{Volume: n.volume(v)})
	for range a.Told {
		if tell != nil {
			tell(api.Progress{})
		}
	}
	return err
}

func (n *farNode) StandsAlone(ctx context.Context, v steps.VolumePlan) (bool, error) {
	a, err := n.ask(ctx, "alone", question{Volume: n.volume(v)})
	return a.Alone, err
}

func (n *farNode) RemoveVolume(ctx context.Context, v steps.VolumePlan) error {
	_, err := n.ask(ctx, "delete", question{Volume: n.volume(v)})
	return err
}

func (n *farNode) RetireLayer(v steps.VolumePlan) error {
	_, err := n.ask(context.Background(), "retire", question{Volume: n.volume(v)})
	return err
}

func (n *farNode) AddSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	s.Volume = *n.volume(s.Volume)
	_, err := n.ask(ctx, "snap", question{Snapshot: &s})
	return err
}

func (n *farNode) UndoSnapshot(ctx context.Context, s steps.SnapshotPlan) error {
	s.Volume = *n.volume(s.Volume)
	_, err := n.ask(ctx, "unsnap", question{Snapshot: &s})
	return err
}

func (n *farNode) DropSnapshot(ctx context.Context, s steps.SnapshotDrop, merged bool, _ func(api.Progress)) error {
	s.Volume = *n.volume(s.Volume)
	_, err := n.ask(ctx, "merge", question{Drop: &s, Merged: merged})
	return err
}

func (n *farNode) CheckRevert(ctx context.Context, r steps.VolumeRevert) error {
	r.Volume = *n.volume(r.Volume)
	_, err := n.ask(ctx, "check revert", question{Revert: &r})
	return err
}

func (n *farNode) RevertVolume(ctx context.Context, r steps.VolumeRevert) error {
	r.Volume = *n.volume(r.Volume)
	_, err := n.ask(ctx, "revert", question{Revert: &r})
	return err
}

func (n *farNode) UndoRevert(ctx context.Context, r steps.VolumeRevert) error {
	r.Volume = *n.volume(r.Volume)
	_, err := n.ask(ctx, "unrevert", question{Revert: &r})
	return err
}

func (n *farNode) Capabilities(p steps.PoolOnNode) storage.Capabilities {
	return storage.NewMounts(storage.NewDir(nil), n.dir, nil).Capabilities(n.there(p))
}

func (n *farNode) Locate(plan steps.VMPlan) (compute.DomainFiles, error) {
	return storage.Locate(*n.plan(plan))
}

func (n *farNode) LocateVolume(v steps.VolumePlan) (compute.DiskSource, error) {
	return storage.NewDir(nil).LocateVolume(*n.volume(v))
}

// program runs a program in the node.
func (n *farNode) program(t *testing.T, args ...string) string {
	t.Helper()
	a, err := n.ask(t.Context(), "run", question{Args: args})
	require.NoError(t, err, "%v on node %s: %s", args, n.name, a.Said)
	return a.Said
}

// write implements hand.
func (n *farNode) write(t *testing.T, v steps.VolumePlan, at int, b byte) {
	t.Helper()
	s, err := n.LocateVolume(v)
	require.NoError(t, err)
	out := n.program(t, "qemu-io", "-f", s.Format, "-c", fmt.Sprintf("write -P %d %d %d", b, at*slot, slot), s.File)
	require.NotContains(t, out, "failed")
}

// read implements hand. The nodes share all directories but their mounts.
func (n *farNode) read(t *testing.T, v steps.VolumePlan) (shown, int64) {
	t.Helper()
	s, err := n.LocateVolume(v)
	require.NoError(t, err)
	raw := filepath.Join(t.TempDir(), "raw")
	n.program(t, "qemu-img", "convert", "-f", s.Format, "-O", "raw", s.File, raw)
	if s.Format == api.FormatQCOW2 {
		out := n.program(t, "sh", "-c", `qemu-img "$@" 2>&1; echo $?`, "sh", "check", "-q", "-f", "qcow2", s.File)
		ok := strings.HasSuffix(out, "0\n") || n.leaks && strings.HasSuffix(out, "3\n")
		require.True(t, ok, out)
	}
	return shows(t, raw)
}

// kill implements killer.
func (n *farNode) kill(t *testing.T, d deed, nth int) killed {
	t.Helper()
	b, err := json.Marshal(d)
	require.NoError(t, err)
	var there deed
	require.NoError(t, json.Unmarshal(b, &there))
	for _, v := range there.plans() {
		*v = *n.volume(*v)
	}
	a, err := n.ask(t.Context(), "kill", question{Deed: &there, Nth: nth})
	require.NoError(t, err)
	return a.Died
}

// placeMemory does what storage.Memories does. One that has to be sealed it writes, seals, keeps and removes as well.
func (n *farNode) placeMemory(ctx context.Context, m steps.MemoryFile) (string, error) {
	m.Pool = n.there(m.Pool)
	a, err := n.ask(ctx, "place", question{Memory: &m})
	return a.Said, err
}

// OpenVolume implements storage.Opened.
func (n *farNode) OpenVolume(ctx context.Context, v steps.VolumePlan) (storage.Disk, error) {
	file := filepath.Join(n.dir, api.NewID())
	if _, err := n.ask(ctx, "open", question{Volume: n.volume(v), Args: []string{file}}); err != nil {
		return nil, err
	}
	return storage.OpenFile(file)
}

// open implements guest.
func (n *farNode) open(t *testing.T, v steps.VolumePlan) (write func(int, byte), grow func(int64), closed func()) {
	t.Helper()
	s, err := n.LocateVolume(v)
	require.NoError(t, err)
	return qemuIO(t, n.box.command(append([]string{"exec", n.name, "qemu-io"}, opening(s.File, s.Format)...)...))
}

// uses implements counter.
func (n *farNode) uses(t *testing.T, v steps.VolumePlan) int64 {
	t.Helper()
	s, err := n.LocateVolume(v)
	require.NoError(t, err)
	return blocks(t, n.program(t, "stat", "-c", "%b", s.File))
}

// discard implements counter.
func (n *farNode) discard(t *testing.T, v steps.VolumePlan, slots int) {
	t.Helper()
	s, err := n.LocateVolume(v)
	require.NoError(t, err)
	n.program(t, append([]string{"qemu-io", "-c", fmt.Sprintf("discard 0 %d", slots*slot), "-c", "flush"}, opening(s.File, s.Format)...)...)
}
