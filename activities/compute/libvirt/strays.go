package libvirt

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute/domain"
	"github.com/nextstack/nextstack/api"
)

// A libvirtd that dies while it gives a guest a disk leaves it with its guest, or open in QEMU, and its successor knows nothing of that.
// The guest would write to a disk that nobody has given it, and nobody else could have it. Such a disk is a stray. QEMU is always asked
// before libvirt: what somebody gives the guest in between libvirt knows, and then it is none.

// straysHeld reports whether the guest still has disks that libvirt does not know of, and asks it to let them go if it is to be asked. What
// QEMU has open for them then is for closeStrays.
func straysHeld(dom *libvirt.Domain, ask bool) (held bool, err error) {
	active, err := dom.IsActive()
	if err != nil || !active {
		return false, err
	}
	strays, err := straysOf(dom)
	if err != nil || !ask {
		return len(strays) > 0, err
	}
	for _, alias := range strays {
		// That it was asked already, or is gone, QEMU says by an error: whether it has let go is seen by looking.
		if err := monitor(dom, "device_del", map[string]any{"id": alias}, nil); lost(err) {
			return false, err
		}
	}
	return len(strays) > 0, nil
}

// straysOf returns what QEMU calls the disks of the guest that libvirt does not know of.
func straysOf(dom *libvirt.Domain) (aliases []string, err error) {
	var all []struct {
		QDev string `json:"qdev"`
	}
	if err := monitor(dom, "query-block", map[string]any{}, &all); err != nil {
		return nil, err
	}
	known, err := openedFor(dom)
	if err != nil {
		return nil, err
	}
	for _, b := range all {
		// One that has a name of its own: "/machine/peripheral/virtio-disk2/virtio-backend".
		parts := strings.Split(b.QDev, "/")
		if len(parts) < 4 || parts[2] != "peripheral" {
			continue
		}
		if alias := parts[3]; !slices.Contains(known.Aliases, alias) {
			aliases = append(aliases, alias)
		}
	}
	return aliases, nil
}

func openedFor(dom *libvirt.Domain) (domain.Opened, error) {
	xml, err := scope{dom, true}.xml()
	if err != nil {
		return domain.Opened{}, err
	}
	return domain.OpenedFor(xml)
}

// numbered finds the number of a disk, or layer, by which libvirt has QEMU call all that it opens for it.
var numbered = regexp.MustCompile(`^libvirt-(\d+)-`)

func numberOf(name string) (n uint, ok bool) {
	m := numbered.FindStringSubmatch(name)
	if m == nil {
		return 0, false
	}
	i, err := strconv.ParseUint(m[1], 10, 32)
	return uint(i), err == nil
}

// closeStrays has QEMU close what it has open for no disk that libvirt knows of, and reports whether there was such a thing. What a device, or
// a job, uses QEMU does not close, whatever libvirt says.
func closeStrays(dom *libvirt.Domain) (closed bool, err error) {
	var nodes []struct {
		Name string `json:"node-name"`
	}
	if err := monitor(dom, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return false, err
	}
	var secrets []struct{ Name string }
	if err := monitor(dom, "qom-list", map[string]any{"path": "/objects"}, &secrets); err != nil {
		return false, err
	}
	known, err := openedFor(dom)
	if err != nil {
		return false, err
	}
	stray := func(name string) bool {
		n, ok := numberOf(name)
		return ok && !slices.Contains(known.Numbers, n)
	}
	var left []string
	for _, n := range nodes {
		if stray(n.Name) {
			left = append(left, n.Name)
		}
	}
	for again := true; again; { // some stand on others, which then are in use
		var inUse []string
		for _, name := range left {
			if err := monitor(dom, "blockdev-del", map[string]any{"node-name": name}, nil); lost(err) {
				return false, err
			} else if err != nil {
				inUse = append(inUse, name)
			}
		}
		again = len(inUse) > 0 && len(inUse) < len(left)
		closed = closed || len(inUse) < len(left)
		left = inUse
	}
	for _, s := range secrets {
		n, ok := numberOf(s.Name)
		if !ok || !stray(s.Name) || slices.ContainsFunc(left, func(name string) bool { return strings.HasPrefix(name, fmt.Sprintf("libvirt-%d-", n)) }) {
			continue
		}
		if err := monitor(dom, "object-del", map[string]any{"id": s.Name}, nil); lost(err) {
			return false, err
		} else if err == nil {
			closed = true
		}
	}
	return closed, nil
}

// newAlias returns a name that no disk of any guest has had. That a disk is gone QEMU tells libvirt a little later than it shows it, and by its
// name: libvirt would take that for the end of the disk that has this name now, and forget it.
func newAlias() string { return "ua-" + api.NewID() }

// give has libvirt give the domain a device, once more if what was in its way was open for nothing.
func (s scope) give(xml string) error {
	err := s.dom.AttachDeviceFlags(xml, s.modify())
	if err == nil || lost(err) || !s.live {
		return err
	}
	closed, cerr := closeStrays(s.dom)
	if cerr != nil || !closed {
		return errors.Join(err, cerr)
	}
	return s.dom.AttachDeviceFlags(xml, s.modify())
}
