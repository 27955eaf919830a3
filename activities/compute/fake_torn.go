package compute

import (
	"github.com/nextstack/nextstack/api/problem"
)

// Tear has the management of the hypervisor die in switches of disks to other layers, where dies says so of a volume: the guest goes
// over, and writes the text, and whoever manages it afterwards believes what was before. The same where a guest that runs is given a disk: it
// has it then, as a stray. Dies is called with the lock held. Nil: it lives.
func (f *Fake) Tear(text string, dies func(volume string) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.torn, f.tornText = dies, text
}

// overtaken is what a layer shows that was written to and brought back: something old, whatever is written below it.
const overtaken = "(outdated) "

// over has a guest that runs write to another layer.
func (f *Fake) over(k SwitchedDisk, disk *FakeDisk) error {
	before := disk.Source
	disk.Source = k.To
	if f.torn == nil || !f.torn(k.Volume) {
		return nil
	}
	disk.Torn = before
	if f.Backing != nil {
		if err := f.Backing.WriteLayer(k.To, f.tornText); err != nil {
			return err
		}
	}
	return errTorn()
}

func errTorn() error {
	return problem.New(problem.Unavailable, "the connection to the hypervisor was lost")
}

// takeBack brings a guest that has gone over to a layer behind its management's back to what that believes in. The layer must not be
// used as it is any more.
func (f *Fake) takeBack(disk *FakeDisk, layer DiskSource) error {
	if !disk.Torn.IsSet() || !disk.Source.Same(layer) {
		return nil
	}
	if f.Backing == nil {
		return errNoBacking
	}
	if err := f.Backing.MergeLayers(layer, disk.Torn); err != nil {
		return err
	}
	disk.Source, disk.Torn = disk.Torn, DiskSource{}
	return f.Backing.WriteLayer(layer, overtaken)
}

// allBack brings all disks of a guest back.
func (f *Fake) allBack(d *fakeDomain, layers []SwitchedDisk) error {
	for _, k := range layers {
		if disk := d.disk(k.Volume); disk != nil {
			if err := f.takeBack(disk, k.To); err != nil {
				return err
			}
		}
	}
	for i := range d.disks {
		if err := d.disks[i].agreed(); err != nil {
			return err
		}
	}
	return nil
}

// agreed refuses a disk of which the guest has something else open than its management knows.
func (k *FakeDisk) agreed() error {
	if !k.Torn.IsSet() {
		return nil
	}
	return problem.New(problem.Unavailable, "nobody knows what disk %s of the guest is written to", k.Device).
		Because("the management of the hypervisor has died in the middle of a change").Try("stop the vm and start it")
}
