package libvirt

import (
	"encoding/json"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"

	"github.com/nextstack/nextstack/activities/compute"
	"github.com/nextstack/nextstack/api/problem"
)

// A libvirtd that dies before a guest goes over to new layers has had QEMU open them, and the next one knows nothing of that: QEMU
// keeps them locked, under names that libvirt will want to give again.

// forget has QEMU close layers that it has opened and the guest does not use. Those that it does use are not touched, whatever libvirt
// says.
func forget(dom *libvirt.Domain, disks []compute.SwitchedDisk) error {
	if len(disks) == 0 {
		return nil
	}
	if active, err := dom.IsActive(); err != nil || !active {
		return err
	}
	var nodes []blockNode
	if err := monitor(dom, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, k := range disks {
		open := opened(nodes, k.To.File)
		if k.To.File == "" || len(open) == 0 {
			continue
		}
		disk, err := scope{dom, true}.real(k.Volume)
		if err != nil {
			return err
		}
		if disk == nil || slices.Contains(disk.Chain, k.To.File) || slices.ContainsFunc(disk.Really, func(s compute.DiskSource) bool { return on(s, k.To) }) {
			continue
		}
		for _, n := range open {
			if err := monitor(dom, "blockdev-del", map[string]any{"node-name": n}, nil); err != nil {
				return problem.New(problem.Unavailable, "QEMU does not close a layer of disk %s that the guest does not use", disk.Device).
					Because("it has %s open: %s", k.To.File, err).Try("stop the vm and start it")
			}
		}
	}
	return nil
}

// blockNode is a file, or what is in it, as QEMU has it open.
type blockNode struct {
	Name   string `json:"node-name"`
	Driver string `json:"drv"`
	File   string `json:"file"`
}

// opened returns the nodes of a file, those that stand on others first: what is in it QEMU does not call by its path, so it is known
// by the name that libvirt has given to both.
func opened(nodes []blockNode, file string) (names []string) {
	for _, n := range nodes {
		if n.Driver != "file" || n.File != file {
			continue
		}
		if base, ok := strings.CutSuffix(n.Name, "-storage"); ok {
			format := base + "-format"
			if slices.ContainsFunc(nodes, func(f blockNode) bool { return f.Name == format }) {
				names = append(names, format)
			}
		}
		names = append(names, n.Name)
	}
	return names
}

// monitor asks QEMU past libvirt. Out may be nil.
func monitor(dom *libvirt.Domain, command string, args map[string]any, out any) error {
	in, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if err != nil {
		return problem.Wrap(err, problem.Internal, "%s cannot be asked of QEMU", command)
	}
	answer, err := dom.QemuMonitorCommand(string(in), libvirt.DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT)
	if err != nil {
		return err
	}
	var said struct {
		Return json.RawMessage               `json:"return"`
		Error  *struct{ Class, Desc string } `json:"error"`
	}
	if err := json.Unmarshal([]byte(answer), &said); err != nil {
		return problem.Wrap(err, problem.Internal, "what QEMU says to %s cannot be read", command)
	}
	if said.Error != nil {
		return problem.New(problem.Internal, "QEMU refuses %s", command).Because("%s", said.Error.Desc)
	}
	if out == nil {
		return nil
	}
	return problem.Wrap(json.Unmarshal(said.Return, out), problem.Internal, "what QEMU says to %s cannot be read", command)
}
