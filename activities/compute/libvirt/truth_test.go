package libvirt

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestSourcesAsQEMUTells(t *testing.T) {
	for name, want := range map[string]compute.DiskSource{
		"/p/a": {File: "/p/a", Format: "qcow2"},
		`json:{"driver":"qcow2","file":{"driver":"file","filename":"/p/b"},"backing":null}`:              {File: "/p/b", Format: "qcow2"},
		`json:{"driver":"raw","file":{"driver":"rbd","pool":"vms","image":"disk-1","user":"nextstack"}}`: {RBD: &compute.RBDImage{Pool: "vms", Image: "disk-1"}},
		"rbd:vms/disk-1:id=nextstack:mon_host=10.0.0.1":                                                  {RBD: &compute.RBDImage{Pool: "vms", Image: "disk-1"}},
		`json:{"driver":"quorum"}`: {},
		`json:{`:                   {},
	} {
		require.Equal(t, want, (&blockFile{Name: name, Format: "qcow2"}).source(), name)
	}
}

// missedRig is a guest with a data volume of two layers, that a test has go to other ones behind libvirt's back, as one does that goes
// over in the moment in which libvirtd dies.
type missedRig struct {
	*testing.T
	d    *Driver
	dir  string
	plan steps.VMPlan
	disk steps.DataDisk
	old  compute.DiskSource
}

func newMissedRig(t *testing.T) *missedRig {
	uri := os.Getenv("NEXTSTACK_TEST_LIBVIRT")
	if uri == "" {
		t.Skip("SKIPPED, NOT TESTED: guests of which libvirt does not know what they write to. Set NEXTSTACK_TEST_LIBVIRT to the URI of a libvirt with QEMU")
	}
	r := &missedRig{T: t, d: New(Options{URI: uri, ConsoleDir: t.TempDir()}), dir: t.TempDir(), disk: steps.DataDisk{Volume: api.NewID(), Device: "vdc"}}
	t.Cleanup(r.d.Close)
	base, root := r.layer(""), r.layer("")
	r.old = r.layer(base.File)
	r.plan = steps.VMPlan{VM: api.NewID(), Name: "missed", VCPUs: 1, Memory: 64 * api.MiB, Disk: steps.DiskPlan{Volume: api.NewID()}, Data: []steps.DataDisk{r.disk}}
	t.Cleanup(func() { require.NoError(t, r.d.Remove(context.Background(), r.plan.VM)) })
	require.NoError(t, r.d.Create(t.Context(), r.plan, compute.DomainFiles{Disk: root, Data: []compute.DiskSource{r.old}}))
	r.write(1)
	return r
}

func (r *missedRig) run(args ...string) string {
	r.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(r, err, "%v: %s", args, out)
	return string(out)
}

// layer makes a layer on another, or one that stands alone.
func (r *missedRig) layer(below string) compute.DiskSource {
	r.Helper()
	s := compute.QCOW2(filepath.Join(r.dir, api.NewID()+".qcow2"))
	r.make(s, below)
	return s
}

func (r *missedRig) make(s compute.DiskSource, below string) {
	r.Helper()
	if below == "" {
		r.run("qemu-img", "create", "-q", "-f", "qcow2", s.File, "64M")
		return
	}
	r.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below, s.File)
}

// fresh makes a layer on the old one anew, which nobody has open.
func (r *missedRig) fresh(s compute.DiskSource) func() error {
	return func() error {
		r.run("qemu-img", "info", s.File) // which fails if somebody has
		r.make(s, r.old.File)
		return nil
	}
}

func (r *missedRig) onDomain(f func(dom *libvirt.Domain) error) {
	r.Helper()
	require.NoError(r, r.d.with(r.Context(), r.plan.VM, "do so in a test", f))
}

func (r *missedRig) ask(command string, args map[string]any) {
	r.Helper()
	r.onDomain(func(dom *libvirt.Domain) error { return monitor(dom, command, args, nil) })
}

// device returns what QEMU has open.
func (r *missedRig) device() (out *guestDevice) {
	r.Helper()
	r.onDomain(func(dom *libvirt.Domain) error {
		disk, err := scope{dom, true}.disk(r.disk.Volume)
		if err == nil {
			out, err = deviceOf(dom, disk.Alias())
		}
		return err
	})
	return out
}

func (r *missedRig) files() (out []string) {
	r.Helper()
	for _, s := range r.device().chain {
		out = append(out, s.File)
	}
	return out
}

// believed returns what libvirt says.
func (r *missedRig) believed() *domain.Disk {
	r.Helper()
	xml, err := r.d.LiveXML(r.Context(), r.plan.VM)
	require.NoError(r, err)
	disk, err := domain.FindDisk(xml, r.disk.Volume)
	require.NoError(r, err)
	return disk
}

// agree: both say the same, which is this.
func (r *missedRig) agree(files ...string) {
	r.Helper()
	require.Equal(r, files, r.files())
	require.Equal(r, files, r.believed().Chain)
	require.Equal(r, api.PhaseRunning, r.phase())
}

func (r *missedRig) phase() api.Phase {
	r.Helper()
	p, err := r.d.State(r.Context(), r.plan.VM)
	require.NoError(r, err)
	return p
}

// write has the guest's device write a pattern to a place of its own, and overwrite what all patterns share.
func (r *missedRig) write(pattern int) {
	r.Helper()
	r.onDomain(func(dom *libvirt.Domain) error {
		disk, err := scope{dom, true}.disk(r.disk.Volume)
		if err != nil {
			return err
		}
		for _, at := range []int{0, pattern} {
			in, err := json.Marshal(map[string]any{"execute": "human-monitor-command", "arguments": map[string]any{
				"command-line": "qemu-io -d /machine/peripheral/" + disk.Alias() + "/virtio-backend \"write -P " + strconv.Itoa(pattern) + " " + strconv.Itoa(at) + "M 1M\"",
			}})
			if err != nil {
				return err
			}
			if _, err := dom.QemuMonitorCommand(string(in), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT); err != nil {
				return err
			}
		}
		return nil
	})
}

// holds: all patterns up to last are in a layer.
func (r *missedRig) holds(s compute.DiskSource, last int) {
	r.Helper()
	check := func(pattern, at int) {
		r.Helper()
		require.NotContains(r, r.run("qemu-io", "-f", "qcow2", "-r", "-c", "read -P "+strconv.Itoa(pattern)+" "+strconv.Itoa(at)+"M 1M", s.File), "failed", "pattern %d", pattern)
	}
	check(last, 0)
	for p := 1; p <= last; p++ {
		check(p, p)
	}
	r.run("qemu-img", "check", "-q", "-f", "qcow2", s.File)
}

// open has QEMU open a layer under names like those that libvirt would give.
func (r *missedRig) open(s compute.DiskSource) (node string) {
	r.Helper()
	r.ask("blockdev-add", map[string]any{"driver": "file", "filename": s.File, "node-name": "libvirt-90-storage", "auto-read-only": true})
	r.ask("blockdev-add", map[string]any{"driver": "qcow2", "file": "libvirt-90-storage", "node-name": "libvirt-90-format", "backing": nil})
	return "libvirt-90-format"
}

// missSwitch has the guest go over to a layer, and libvirt miss it.
func (r *missedRig) missSwitch(to compute.DiskSource) {
	r.Helper()
	now := r.device().node
	node := r.open(to)
	r.ask("blockdev-snapshot", map[string]any{"node": now, "overlay": node})
	require.Equal(r, to.File, r.files()[0])
	require.Equal(r, r.old.File, r.believed().Chain[0], "libvirt knows nothing of it")
}

// restart cuts the guest off, as somebody does who stops the VM.
func (r *missedRig) restart() {
	r.Helper()
	_, err := r.d.Stop(r.Context(), r.plan.VM, true, 0, nil)
	require.NoError(r, err)
	_, err = r.d.Start(r.Context(), r.plan.VM)
	require.NoError(r, err)
}

func (r *missedRig) stop() {
	r.Helper()
	_, err := r.d.Stop(r.Context(), r.plan.VM, true, 0, nil)
	require.NoError(r, err)
}

// TestMissedSwitchIsMadeAgain: whoever wanted the switch gets it.
func TestMissedSwitchIsMadeAgain(t *testing.T) {
	r := newMissedRig(t)
	to := r.layer(r.old.File)
	r.missSwitch(to)
	r.write(2)
	fresh := 0
	for range 2 {
		done, err := r.d.SwitchDisk(t.Context(), r.plan.VM, r.disk.Volume, compute.LayerSwitch{To: to, Fresh: func() error { fresh++; return r.fresh(to)() }})
		require.NoError(t, err)
		require.True(t, done.Running)
	}
	require.Equal(t, 1, fresh)
	r.agree(to.File, r.old.File, r.believed().Chain[2])
	r.write(3)
	r.stop()
	r.holds(r.old, 2)
	r.holds(to, 3)
	_, err := r.d.Start(t.Context(), r.plan.VM)
	require.NoError(t, err)
	r.agree(r.believed().Chain...)
	require.Equal(t, to.File, r.believed().Chain[0])
}

// TestMissedSwitchIsUndone: the layer is given up, and what the guest has written to it is in the old one.
func TestMissedSwitchIsUndone(t *testing.T) {
	r := newMissedRig(t)
	to := r.layer(r.old.File)
	r.missSwitch(to)
	r.write(2)
	retired := 0
	m := compute.Merge{Top: to, Below: r.old, Retired: func() error {
		retired++
		if _, err := os.Stat(to.File); err != nil {
			return nil
		}
		r.run("qemu-img", "info", to.File) // which fails if somebody has it open
		return os.Rename(to.File, to.File+".part")
	}}
	for range 2 {
		running, err := r.d.MergeDisk(t.Context(), r.plan.VM, r.disk.Volume, m, nil)
		require.NoError(t, err)
		require.True(t, running)
	}
	require.Positive(t, retired)
	r.agree(r.believed().Chain...)
	r.write(3)
	r.stop()
	r.holds(r.old, 3)
}

// TestMissedSwitchCutOff: whoever takes it back may die at any time.
func TestMissedSwitchCutOff(t *testing.T) {
	r := newMissedRig(t)
	to := r.layer(r.old.File)
	r.missSwitch(to)
	r.write(2)
	boom := errors.New("the end")
	_, err := r.d.SwitchDisk(t.Context(), r.plan.VM, r.disk.Volume, compute.LayerSwitch{To: to, Fresh: func() error {
		require.Equal(t, api.PhasePaused, phaseOfNow(t, r.d.opt.URI, r.plan.VM), "the layer is not known to be old yet")
		return boom
	}})
	require.ErrorContains(t, err, "the end")
	require.Equal(t, api.PhasePaused, r.phase())
	_, err = r.d.SwitchDisk(t.Context(), r.plan.VM, r.disk.Volume, compute.LayerSwitch{To: to, Fresh: r.fresh(to)})
	require.NoError(t, err)
	r.write(3)
	require.Equal(t, api.PhaseRunning, r.phase())
	r.stop()
	r.holds(r.old, 2)
	r.holds(to, 3)
}

// TestMissedSwitchOpensOnly: libvirtd has died before the guest went over.
func TestMissedSwitchOpensOnly(t *testing.T) {
	r := newMissedRig(t)
	to := r.layer(r.old.File)
	r.open(to)
	r.write(2)
	_, err := r.d.SwitchDisk(t.Context(), r.plan.VM, r.disk.Volume, compute.LayerSwitch{To: to, Fresh: r.fresh(to)})
	require.NoError(t, err)
	r.agree(to.File, r.old.File, r.believed().Chain[2])
}

// TestMissedSwitchIsNotBelieved: whoever has nothing to do with the switch does not touch the disk, and the next start is right.
func TestMissedSwitchIsNotBelieved(t *testing.T) {
	r := newMissedRig(t)
	to, ctx := r.layer(r.old.File), t.Context()
	r.missSwitch(to)
	r.write(2)
	refused := func(err error) {
		t.Helper()
		require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "do not agree")
	}
	_, err := r.d.ResizeDisk(ctx, r.plan.VM, r.disk.Volume, 128*api.MiB)
	refused(err)
	_, err = r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, compute.LayerSwitch{To: r.layer(r.old.File)})
	refused(err)
	_, err = r.d.MergeDisk(ctx, r.plan.VM, r.disk.Volume, compute.Merge{Top: r.old, Below: compute.QCOW2(r.believed().Chain[1]), Retired: func() error { panic("it is in use") }}, nil)
	refused(err)
	_, err = r.d.PullDisk(ctx, r.plan.VM, r.disk.Volume, nil)
	refused(err)
	_, err = r.d.MoveDisk(ctx, r.plan.VM, r.disk.Volume, r.layer(""), 0, nil)
	refused(err)
	_, err = r.d.SettleDisk(ctx, r.plan.VM, r.disk.Volume, r.layer(""))
	refused(err)
	refused(r.d.DetachDisk(ctx, r.plan.VM, r.disk.Volume))
	_, err = r.d.TakeCheckpoint(ctx, r.plan.VM, compute.Checkpoint{Memory: filepath.Join(r.dir, "memory"), Disks: []compute.SwitchedDisk{{Volume: r.disk.Volume, To: r.layer(r.old.File)}}}, nil)
	refused(err)
	refused(r.d.SaveGuest(ctx, r.plan.VM, filepath.Join(r.dir, "memory"), nil))
	require.NoError(t, r.d.EndCheckpoint(ctx, r.plan.VM, []compute.SwitchedDisk{{Volume: r.disk.Volume, To: to}}))
	require.Equal(t, to.File, r.files()[0])
	r.write(3)
	r.restart()
	r.agree(r.believed().Chain...)
	require.Equal(t, to.File, r.believed().Chain[0])
	_, err = r.d.ResizeDisk(ctx, r.plan.VM, r.disk.Volume, 128*api.MiB)
	require.NoError(t, err)
	r.stop()
	r.holds(to, 3)
}

// TestMissedEndOfMerge: QEMU has brought the guest to the lower layer, and libvirt believes in the upper one.
func TestMissedEndOfMerge(t *testing.T) {
	r := newMissedRig(t)
	ctx, below := t.Context(), compute.QCOW2(r.believed().Chain[1])
	r.onDomain(rest)
	r.ask("block-commit", map[string]any{"job-id": "missed", "device": r.device().node, "base-node": "libvirt-" + strconv.Itoa(int(r.believed().XML.BackingStore.Index)) + "-format"})
	r.until("ready")
	r.ask("job-complete", map[string]any{"id": "missed"})
	r.until("")
	require.Equal(t, []string{below.File}, r.files())
	require.Len(t, r.believed().Chain, 2)

	retired := false
	running, err := r.d.MergeDisk(ctx, r.plan.VM, r.disk.Volume, compute.Merge{Top: r.old, Below: below, Retired: func() error {
		require.Equal(t, api.PhasePaused, phaseOfNow(t, r.d.opt.URI, r.plan.VM))
		retired = true
		return nil
	}}, nil)
	require.NoError(t, err)
	require.True(t, running)
	require.True(t, retired)
	require.Equal(t, api.PhaseRunning, r.phase())
	r.write(2)
	_, err = r.d.SwitchDisk(ctx, r.plan.VM, r.disk.Volume, compute.LayerSwitch{To: r.layer(below.File)})
	require.ErrorContains(t, err, "do not agree", "until it is started again")
	r.restart()
	r.agree(below.File)
	r.stop()
	r.holds(below, 2)
}

// TestMissedEndOfCopy: QEMU has brought the guest to the copy, and libvirt believes that it is where it was.
func TestMissedEndOfCopy(t *testing.T) {
	r := newMissedRig(t)
	ctx, to := t.Context(), r.layer("")
	r.onDomain(rest)
	r.ask("blockdev-mirror", map[string]any{"job-id": "missed", "device": r.device().node, "target": r.open(to), "sync": "full"})
	r.until("ready")
	r.ask("job-complete", map[string]any{"id": "missed"})
	r.until("")
	require.Equal(t, []string{to.File}, r.files())
	there, err := r.d.SettleDisk(ctx, r.plan.VM, r.disk.Volume, to)
	require.NoError(t, err)
	require.True(t, there)
	done, err := r.d.MoveDisk(ctx, r.plan.VM, r.disk.Volume, to, 0, nil)
	require.NoError(t, err)
	require.True(t, done.There)
	require.Equal(t, api.PhaseRunning, r.phase())
	r.write(2)
	r.restart()
	r.agree(to.File)
	r.stop()
	r.holds(to, 2)
}

// until waits until QEMU's job is so far; nothing: until it is gone.
func (r *missedRig) until(status string) {
	r.Helper()
	require.Eventually(r, func() bool {
		now := ""
		r.onDomain(func(dom *libvirt.Domain) error {
			var jobs []struct{ ID, Status string }
			err := monitor(dom, "query-jobs", map[string]any{}, &jobs)
			for _, j := range jobs {
				if j.ID == "missed" {
					now = j.Status
				}
			}
			return err
		})
		return now == status
	}, 10*time.Second, 10*time.Millisecond)
}
