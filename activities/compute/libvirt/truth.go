package libvirt

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api/problem"
)

// A libvirtd that dies in the very moment in which QEMU goes over to another layer leaves its successor with what was before: it
// reads back what was saved last. So whoever reads or changes the layers of a guest that runs asks QEMU as well.

// guestDevice is a disk of a guest as QEMU has it.
type guestDevice struct {
	node  string               // what it is written to
	chain []compute.DiskSource // the same by its name, and then what is below; as far as they have names
	size  int64                // bytes that the guest sees; 0: it does not say
}

// is reports whether libvirt says the same of the disk.
func (g *guestDevice) is(disk *domain.Disk) bool {
	if i := disk.Index(); i > 0 && !strings.HasPrefix(g.node, fmt.Sprintf("libvirt-%d-", i)) {
		return false
	}
	if len(disk.Chain) == 0 {
		return true
	}
	files := make([]string, 0, len(g.chain))
	for _, s := range g.chain {
		if s.File == "" {
			return true // it says it in a way that we do not know
		}
		files = append(files, s.File)
	}
	return slices.Equal(files, disk.Chain)
}

// deviceOf asks QEMU what it has open for a device; nil: there is no such device.
func deviceOf(dom *libvirt.Domain, alias string) (*guestDevice, error) {
	var all []struct {
		QDev     string `json:"qdev"`
		Inserted *struct {
			Node  string     `json:"node-name"`
			Image *blockFile `json:"image"`
		} `json:"inserted"`
	}
	if err := monitor(dom, "query-block", map[string]any{}, &all); err != nil {
		return nil, err
	}
	for _, b := range all {
		if b.Inserted == nil || !slices.Contains(strings.Split(b.QDev, "/"), alias) {
			continue
		}
		out := &guestDevice{node: b.Inserted.Node}
		if b.Inserted.Image != nil {
			out.size = b.Inserted.Image.Size
		}
		for f := b.Inserted.Image; f != nil; f = f.Backing {
			out.chain = append(out.chain, f.source())
		}
		return out, nil
	}
	return nil, nil
}

// blockFile is a layer as QEMU tells of it.
type blockFile struct {
	Name    string     `json:"filename"`
	Format  string     `json:"format"`
	Size    int64      `json:"virtual-size"`
	Backing *blockFile `json:"backing-image"`
}

// source returns what the layer is; not set: it is called in a way that we do not know.
func (f *blockFile) source() compute.DiskSource {
	if in, ok := strings.CutPrefix(f.Name, "json:"); ok {
		return optionsOf(in, f.Format)
	}
	if in, ok := strings.CutPrefix(f.Name, "rbd:"); ok {
		name, _, _ := strings.Cut(in, ":")
		pool, image, _ := strings.Cut(name, "/")
		return compute.DiskSource{RBD: &compute.RBDImage{Pool: pool, Image: image}}
	}
	return compute.DiskSource{File: f.Name, Format: f.Format}
}

// optionsOf reads a name that consists of options, those of a format around those of a file.
func optionsOf(options, format string) compute.DiskSource {
	type node struct {
		Driver string          `json:"driver"`
		Name   string          `json:"filename"`
		Pool   string          `json:"pool"`
		Image  string          `json:"image"`
		File   json.RawMessage `json:"file"`
	}
	at := json.RawMessage(options)
	for range 4 { // deeper than any is
		var n node
		if json.Unmarshal(at, &n) != nil {
			break
		}
		switch {
		case n.Driver == "file" && n.Name != "":
			return compute.DiskSource{File: n.Name, Format: format}
		case n.Driver == "rbd" && n.Image != "":
			return compute.DiskSource{RBD: &compute.RBDImage{Pool: n.Pool, Image: n.Image}}
		}
		at = n.File
	}
	return compute.DiskSource{}
}

// on reports whether a source that QEMU has told is another one. It does not tell all of it.
func on(told, s compute.DiskSource) bool {
	if told.RBD != nil && s.RBD != nil {
		return told.RBD.Pool == s.RBD.Pool && told.RBD.Image == s.RBD.Image
	}
	return told.Same(s)
}

// real returns the disk of a volume, and in it what the guest really has open should libvirt not know that; nil: there is no such disk.
func (s scope) real(volume string) (*domain.Disk, error) {
	disk, err := s.disk(volume)
	if !s.live {
		return disk, err
	}
	for err == nil && disk != nil {
		var has *guestDevice
		if has, err = deviceOf(s.dom, disk.Alias()); err != nil || has == nil { // one that is not there is just leaving
			return disk, err
		}
		if disk.Size = has.size; has.is(disk) {
			return disk, nil
		}
		// A job of its own libvirt follows to its end, if not at once.
		var job *libvirt.DomainBlockJobInfo
		if job, err = s.dom.GetBlockJobInfo(disk.Device, 0); err != nil || job.Type != libvirt.DOMAIN_BLOCK_JOB_TYPE_UNKNOWN {
			return disk, err
		}
		before := disk
		if disk, err = s.disk(volume); err == nil && disk != nil && disk.Index() == before.Index() && slices.Equal(disk.Chain, before.Chain) {
			disk.Really = has.chain
			return disk, nil
		}
	}
	return nil, err
}

// agreed refuses a disk of which the guest has something else open than libvirt knows. That it is started with it the next time, at
// least, is seen to.
func (s scope) agreed(disk *domain.Disk, volume string) error {
	if disk == nil || disk.Really == nil {
		return nil
	}
	has := "something else"
	if is := disk.Really[0]; is.IsSet() {
		has = is.String()
		if is.File != "" {
			if err := place(s.dom, volume, is); err != nil {
				return err
			}
		}
	}
	if len(disk.Really) > 1 {
		has = fmt.Sprintf("%s, with %d below", has, len(disk.Really)-1)
	}
	return problem.New(problem.Unavailable, "libvirt and QEMU do not agree on what disk %s of the guest is written to", disk.Device).
		Because("libvirtd has died in the middle of a change: QEMU has %s open, and libvirt believes %s, with %d below", has, disk.Source, max(len(disk.Chain)-1, 0)).
		Try("stop the vm and start it: it is started with what it has open now")
}

// allAgreed looks at all disks of a guest.
func (s scope) allAgreed() error {
	xml, err := s.xml()
	if err != nil {
		return err
	}
	disks, err := domain.Devices(xml)
	if err != nil {
		return err
	}
	for _, k := range disks {
		disk, err := s.real(volumeOf(k))
		if err == nil {
			err = s.agreed(disk, volumeOf(k))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
