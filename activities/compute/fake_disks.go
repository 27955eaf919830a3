package compute

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/workflows/steps"
)

// FakeDisk is a disk of a domain of a Fake.
type FakeDisk struct {
	Volume    string
	Device    string
	Source    DiskSource
	ReadOnly  bool
	Shareable bool
	QoS       api.VolumeQoS
	// Torn is what the hypervisor's management takes the disk to be, while the guest that runs writes to Source; not set: it knows.
	Torn DiskSource
	// Stray: the guest has it, and the hypervisor's management does not know.
	Stray bool
}

// FakeBacking is what is behind the disks of a Fake. storage.Fake is one.
type FakeBacking interface {
	// Chain returns the layers of which a disk consists, that which is written to first.
	Chain(s DiskSource) ([]DiskSource, error)
	// MergeLayers does to files what a hypervisor does that merges a layer into the one below.
	MergeLayers(top, below DiskSource) error
	// CopyLayer does what a hypervisor does that copies a disk to another place, which is there.
	CopyLayer(from, to DiskSource) error
	// GrowLayer does to a file what a hypervisor does that gives a disk a new size. One that is as big already is content.
	GrowLayer(s DiskSource, size int64) error
	// WriteLayer does to a file what a guest does that writes.
	WriteLayer(s DiskSource, text string) error
	// SendLayer does what a hypervisor does that fills the file of the same name on another node, which is there.
	SendLayer(s DiskSource, to FakeBacking) error
	// PullLayer does to a file what a hypervisor does that brings all into it that it shows of what it is made on.
	PullLayer(s DiskSource) error
	// WriteMemory does what a hypervisor does that writes the memory of a guest to a file, and ReadMemory returns what is in one.
	WriteMemory(path, content string) error
	ReadMemory(path string) (content string, there bool, err error)
}

// fakePause is how long a guest of a Fake waits.
const fakePause = time.Millisecond

// Disks returns the disks of a domain, the root disk first; nil: there is no such domain.
func (f *Fake) Disks(vm string) []FakeDisk {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[vm]; d != nil {
		return slices.Clone(d.disks)
	}
	return nil
}

// Writes reports whether a guest that is not off has a volume that it may write to.
func (f *Fake) Writes(volume string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.domains {
		if d.phase != api.PhaseStopped && slices.ContainsFunc(d.disks, func(k FakeDisk) bool { return k.Volume == volume && !k.ReadOnly }) {
			return true
		}
	}
	return false
}

// SetDisks gives a domain these disks, whatever it had.
func (f *Fake) SetDisks(vm string, disks []FakeDisk) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.domains[vm]; d != nil {
		d.disks = slices.Clone(disks)
	}
}

// Clingy makes guests hold on to their disks.
func (f *Fake) Clingy(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clingy = yes
}

// Mute takes the agent from guests, which brings their file systems to rest.
func (f *Fake) Mute(yes bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mute = yes
}

// disksOf are the disks that a domain of plan has.
func disksOf(plan steps.VMPlan, files DomainFiles) []FakeDisk {
	out := []FakeDisk{{Volume: plan.Disk.Volume, Device: api.RootDevice, Source: files.Disk, QoS: plan.Disk.QoS}}
	for i, d := range plan.Data {
		disk := fakeDiskOf(d, DiskSource{})
		if i < len(files.Data) {
			disk.Source = files.Data[i]
		}
		out = append(out, disk)
	}
	return out
}

func fakeDiskOf(d steps.DataDisk, s DiskSource) FakeDisk {
	return FakeDisk{Volume: d.Volume, Device: d.Device, Source: s, ReadOnly: d.ReadOnly, Shareable: d.Shareable, QoS: d.QoS}
}

func (d *fakeDomain) disk(volume string) *FakeDisk {
	i := slices.IndexFunc(d.disks, func(k FakeDisk) bool { return k.Volume == volume && !k.Stray })
	if i < 0 {
		return nil
	}
	return &d.disks[i]
}

// strays reports whether the guest has disks that its management does not know of.
func (d *fakeDomain) strays() bool {
	return slices.ContainsFunc(d.disks, func(k FakeDisk) bool { return k.Stray })
}

func (d *fakeDomain) letStraysGo() {
	d.disks = slices.DeleteFunc(d.disks, func(k FakeDisk) bool { return k.Stray })
}

// onDisk calls do with the lock held.
func (f *Fake) onDisk(ctx context.Context, vm, volume string, do func(*fakeDomain, *FakeDisk) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil {
		return err
	}
	disk := d.disk(volume)
	if disk == nil {
		return NoSuchDisk(vm, volume)
	}
	return do(d, disk)
}

// AttachDisk implements Disks.
func (f *Fake) AttachDisk(ctx context.Context, vm string, disk steps.DataDisk, source DiskSource) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil {
		return err
	}
	if err := CheckDataDisk(disk, source); err != nil {
		return err
	}
	if f.clingy && d.strays() {
		return HeldOn(ctx, vm, disk.Volume)
	}
	d.letStraysGo()
	for _, has := range d.disks {
		switch {
		case has.Volume == disk.Volume && has.Device == disk.Device:
			return nil
		case has.Volume == disk.Volume:
			return AttachedAs(vm, disk.Volume, has.Device)
		case has.Device == disk.Device:
			return DeviceTaken(vm, disk.Device)
		}
	}
	k := fakeDiskOf(disk, source)
	k.Stray = d.phase != api.PhaseStopped && f.torn != nil && f.torn(disk.Volume)
	d.disks = append(d.disks, k)
	if !k.Stray {
		return nil
	}
	if f.Backing != nil {
		if err := f.Backing.WriteLayer(source, f.tornText); err != nil {
			return err
		}
	}
	return errTorn()
}

// DetachDisk implements Disks.
func (f *Fake) DetachDisk(ctx context.Context, vm, volume string) error {
	for {
		f.mu.Lock()
		d, err := f.find(ctx, vm)
		held := false
		if err == nil {
			if held = f.clingy && d.phase != api.PhaseStopped && (d.disk(volume) != nil || d.strays()); !held {
				d.letStraysGo()
				d.disks = slices.DeleteFunc(d.disks, func(k FakeDisk) bool { return k.Volume == volume && !k.Stray && k.Device != api.RootDevice })
			}
		}
		f.mu.Unlock()
		if !held {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return HeldOn(ctx, vm, volume)
		}
	}
}

// ResizeDisk implements Disks.
func (f *Fake) ResizeDisk(ctx context.Context, vm, volume string, size int64) (running bool, err error) {
	err = f.onDisk(ctx, vm, volume, func(d *fakeDomain, disk *FakeDisk) error {
		if running = d.phase != api.PhaseStopped; !running || f.Backing == nil {
			return nil
		}
		if err := disk.agreed(); err != nil {
			return err
		}
		return f.Backing.GrowLayer(disk.Source, size)
	})
	return running, err
}

// TuneDisk implements Disks.
func (f *Fake) TuneDisk(ctx context.Context, vm, volume string, qos api.VolumeQoS) error {
	return f.onDisk(ctx, vm, volume, func(_ *fakeDomain, disk *FakeDisk) error {
		disk.QoS = qos
		return nil
	})
}

// SwitchDisk implements Disks.
func (f *Fake) SwitchDisk(ctx context.Context, vm, volume string, l LayerSwitch) (done Switched, err error) {
	err = f.onDisk(ctx, vm, volume, func(d *fakeDomain, disk *FakeDisk) error {
		if d.phase == api.PhaseStopped {
			disk.Source = l.To
			return nil
		}
		done = Switched{Running: true, Frozen: l.Freeze && !f.mute && d.phase == api.PhaseRunning, Pause: fakePause}
		if err := f.takeBack(disk, l.To); err != nil {
			return err
		}
		if err := disk.agreed(); err != nil || disk.Source == l.To {
			return err
		}
		if l.Fresh != nil {
			if err := l.Fresh(); err != nil {
				return err
			}
		}
		return f.over(SwitchedDisk{volume, l.To}, disk)
	})
	return done, err
}

// PlaceDisk implements Disks.
func (f *Fake) PlaceDisk(ctx context.Context, vm, volume string, to DiskSource) (running bool, err error) {
	err = f.onDisk(ctx, vm, volume, func(d *fakeDomain, disk *FakeDisk) error {
		if running = d.phase != api.PhaseStopped; !running {
			disk.Source = to
		}
		return nil
	})
	return running, err
}

// MergeDisk implements Disks.
func (f *Fake) MergeDisk(ctx context.Context, vm, volume string, m Merge, tell func(api.Progress)) (running bool, err error) {
	err = f.onDisk(ctx, vm, volume, func(d *fakeDomain, disk *FakeDisk) error {
		if d.phase == api.PhaseStopped {
			return nil
		}
		if f.Backing == nil {
			return errors.New("there is nothing behind the disks of this fake")
		}
		if err := f.takeBack(disk, m.Top); err != nil {
			return err
		}
		if err := disk.agreed(); err != nil {
			return err
		}
		if tell != nil {
			tell(api.Progress{Text: "merging", Done: 1, Total: 1})
		}
		open, err := f.Backing.Chain(disk.Source)
		if err != nil {
			return err
		}
		switch top, below := slices.Index(open, m.Top), slices.Index(open, m.Below); {
		case top < 0 && below < 0:
			return nil
		case top < 0:
			if running = true; disk.Source == m.Below && m.Retired != nil {
				return m.Retired()
			}
			return nil
		case below != top+1:
			return NotBelow(m)
		}
		running = true
		if err := f.Backing.MergeLayers(m.Top, m.Below); err != nil || disk.Source != m.Top {
			return err
		}
		disk.Source = m.Below
		if m.Retired != nil {
			return m.Retired()
		}
		return nil
	})
	return running, err
}

// Redirect implements Disks.
func (f *Fake) Redirect(ctx context.Context, vm string, now RBDImage) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, err := f.find(ctx, vm)
	if err != nil || d.phase != api.PhaseStopped {
		return err
	}
	for i, disk := range d.disks {
		if r := disk.Source.RBD; r != nil && r.Secret == now.Secret {
			to := *r
			to.Monitors, to.User = slices.Clone(now.Monitors), now.User
			d.disks[i].Source.RBD = &to
		}
	}
	return nil
}

// PullDisk implements Disks.
func (f *Fake) PullDisk(ctx context.Context, vm, volume string, tell func(api.Progress)) (running bool, err error) {
	err = f.onDisk(ctx, vm, volume, func(d *fakeDomain, disk *FakeDisk) error {
		if running = d.phase != api.PhaseStopped; !running {
			return nil
		}
		if tell != nil {
			tell(api.Progress{Text: "pulling", Done: 1, Total: 1})
		}
		if f.Backing == nil {
			return errors.New("there is nothing behind the disks of this fake")
		}
		if err := disk.agreed(); err != nil {
			return err
		}
		return f.Backing.PullLayer(disk.Source)
	})
	return running, err
}

// StopPull implements Disks. A pull of a Fake takes no time.
func (f *Fake) StopPull(ctx context.Context, vm, volume string) error {
	return f.onDisk(ctx, vm, volume, func(*fakeDomain, *FakeDisk) error { return nil })
}

// Freezing implements Disks.
func (f *Fake) Freezing(ctx context.Context, vm string, freeze bool, do func() error) (done Switched, err error) {
	f.mu.Lock()
	d, err := f.find(ctx, vm)
	if err == nil && d.phase != api.PhaseStopped {
		done = Switched{Running: true, Frozen: freeze && !f.mute && d.phase == api.PhaseRunning, Pause: fakePause}
	}
	f.mu.Unlock()
	if err != nil {
		return Switched{}, err
	}
	return done, do()
}

// Resting implements Disks.
func (f *Fake) Resting(ctx context.Context, vm string, do func() error) (rested bool, pause time.Duration, err error) {
	f.mu.Lock()
	d, err := f.find(ctx, vm)
	if err == nil && d.phase == api.PhaseRunning {
		rested, pause = !f.mute, fakePause
	}
	f.mu.Unlock()
	if err != nil {
		return false, 0, err
	}
	return rested, pause, do()
}
