package stack

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// disks is what records say of everything that pools keep, and what was found of it.
type disks struct {
	stack   *Stack
	vms     map[string]*api.VM   // by ID
	pools   map[string]*api.Pool // by ID
	volumes map[string]*api.Volume
	// want is what must be there: by pool and place, which is the ID of an agent or empty if all see the same, what it is for by
	// its name.
	want  map[shelf]map[string]string
	found []string
}

// shelf is a pool as one node has it.
type shelf struct{ pool, agent string }

func (d *disks) leak(format string, args ...any) {
	d.found = append(d.found, fmt.Sprintf(format, args...))
}

// diskLeaks compares what pools hold, and what domains have of it, with the records of VMs, volumes, snapshots and checkpoints.
func (s *Stack) diskLeaks(ctx context.Context, vms map[string]*api.VM) ([]string, error) {
	d := &disks{stack: s, vms: vms, pools: map[string]*api.Pool{}, volumes: map[string]*api.Volume{}, want: map[shelf]map[string]string{}}
	if err := d.read(ctx); err != nil {
		return nil, err
	}
	for _, p := range d.pools {
		if p.Spec.Type == api.PoolRBD {
			if err := d.devices(ctx, p); err != nil {
				return nil, err
			}
		}
	}
	looked := map[shelf]bool{}
	for _, h := range s.Hosts {
		if !h.Powered() {
			continue
		}
		a, err := h.Record(ctx)
		if err != nil {
			return nil, err
		}
		for _, p := range d.pools {
			at := d.shelf(p.ID, a.ID)
			if p.Spec.Type != api.PoolDir || looked[at] || !slices.Contains(p.Spec.Agents, a.ID) {
				continue
			}
			looked[at] = true
			if err := d.files(p, h, at); err != nil {
				return nil, err
			}
		}
		d.domains(ctx, h, a.ID)
	}
	return d.found, nil
}

// read reads the records.
func (d *disks) read(ctx context.Context) error {
	c := d.stack.Client
	for p, err := range client.All[*api.Pool](ctx, c, "", client.ListOptions{}) {
		if err != nil {
			return err
		}
		d.pools[p.ID] = p
	}
	for v, err := range client.All[*api.Volume](ctx, c, "", client.ListOptions{}) {
		if err != nil {
			return err
		}
		d.volumes[v.ID] = v
		ending := map[bool]string{true: ".raw", false: ".qcow2"}[v.Spec.Shareable]
		d.expect(v.Spec.Pool, d.agent(v), d.disk(v, v.LayerName(), ending), "volume "+v.Name)
	}
	for s, err := range client.All[*api.Snapshot](ctx, c, "", client.ListOptions{}) {
		if err != nil {
			return err
		}
		v := d.volumes[s.Spec.Volume]
		switch {
		case v == nil:
			d.leak("snapshot %s is of a volume that there is not", s.Name)
		case s.Status.Layer != "":
			d.expect(v.Spec.Pool, d.agent(v), d.disk(v, s.Status.Layer, ".qcow2"), "snapshot "+s.Name)
		default:
			d.expect(v.Spec.Pool, "", "disk-"+v.ID+"@snap-"+s.ID, "snapshot "+s.Name)
		}
	}
	for p, err := range client.All[*api.Checkpoint](ctx, c, "", client.ListOptions{}) {
		if err != nil {
			return err
		}
		vm := d.vms[p.Spec.VM]
		if vm == nil {
			d.leak("checkpoint %s is of a VM that there is not", p.Name)
			continue
		}
		d.expect(p.Status.Pool, vm.Status.Agent, "checkpoints/"+p.ID+".memory", "checkpoint "+p.Name)
	}
	for _, vm := range d.vms {
		d.expect(vm.Spec.Pool, vm.Status.Agent, d.seed(vm), "seed of vm "+vm.Name)
	}
	return nil
}

func (d *disks) rbd(pool string) bool {
	return d.pools[pool] != nil && d.pools[pool].Spec.Type == api.PoolRBD
}

// disk is what a layer of a volume is called in its pool.
func (d *disks) disk(v *api.Volume, layer, ending string) string {
	if d.rbd(v.Spec.Pool) {
		return "disk-" + v.ID
	}
	return "volumes/" + layer + ending
}

func (d *disks) seed(vm *api.VM) string {
	if d.rbd(vm.Spec.Pool) {
		return "seed-" + vm.ID
	}
	return "seeds/" + vm.ID + ".iso"
}

// agent is whose directory has a volume.
func (d *disks) agent(v *api.Volume) string {
	if vm := d.vms[v.Spec.VM]; v.Spec.Root && vm != nil {
		return vm.Status.Agent
	}
	return v.Status.Agent
}

// shelf is a pool as a node has it.
func (d *disks) shelf(pool, agent string) shelf {
	if p := d.pools[pool]; p == nil || p.Spec.Shared {
		agent = ""
	}
	return shelf{pool, agent}
}

func (d *disks) expect(pool, agent, name, what string) {
	at := d.shelf(pool, agent)
	if d.want[at] == nil {
		d.want[at] = map[string]string{}
	}
	d.want[at][name] = what
}

// compare tells what was found and should not, and the other way round.
func (d *disks) compare(at shelf, where string, found []string) {
	for _, name := range found {
		if d.want[at][name] == "" {
			d.leak("%s: %s is nobody's", where, name)
		}
	}
	for name, what := range d.want[at] {
		if !slices.Contains(found, name) {
			d.leak("%s: %s, %s, is missing", where, name, what)
		}
	}
}

// files looks at a pool that is a directory. Images and the pool's own files are not looked at.
func (d *disks) files(p *api.Pool, h *Host, at shelf) error {
	dir := p.Spec.Path
	if rest, own := strings.CutPrefix(dir, d.stack.path("s", "disks")); own {
		dir = h.Path(rest)
	}
	var found []string
	for _, sub := range []string{"volumes", "seeds", "checkpoints"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			found = append(found, sub+"/"+e.Name())
		}
	}
	d.compare(at, h.Name+": pool "+p.Name, found)
	return nil
}

// devices looks at a Ceph pool: block devices, their snapshots, the trash, and whether somebody has one open whom nobody knows.
func (d *disks) devices(ctx context.Context, p *api.Pool) error {
	list := func(into any, args ...string) error {
		out, err := d.stack.rbd(ctx, append(args, "--format", "json")...)
		if err != nil {
			return err
		}
		return json.Unmarshal([]byte(out), into)
	}
	var names, found []string
	if err := list(&names, "ls", p.Spec.Source.Name); err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "image-") {
			continue
		}
		found = append(found, name)
		var snaps []struct{ Name string }
		if err := list(&snaps, "snap", "ls", "--all", p.Spec.Source.Name+"/"+name); err != nil {
			return err
		}
		for _, s := range snaps {
			found = append(found, name+"@"+s.Name)
		}
		var status struct{ Watchers []struct{ Address string } }
		if err := list(&status, "status", p.Spec.Source.Name+"/"+name); err != nil {
			return err
		}
		id, isDisk := strings.CutPrefix(name, "disk-")
		if v := d.volumes[id]; isDisk && v != nil && len(status.Watchers) > len(v.VMs()) {
			d.leak("pool %s: %s is open by %+v, and of %d VMs", p.Name, name, status.Watchers, len(v.VMs()))
		}
	}
	var trash []struct{ Name string }
	if err := list(&trash, "trash", "ls", p.Spec.Source.Name); err != nil {
		return err
	}
	for _, t := range trash {
		found = append(found, "trash/"+t.Name)
	}
	d.compare(shelf{p.ID, ""}, "pool "+p.Name, found)
	return nil
}

// domainXML is what is of interest of a domain's definition.
type domainXML struct {
	Disks []struct {
		Source struct {
			File string `xml:"file,attr"`
			Name string `xml:"name,attr"`
		} `xml:"source"`
		Mirror *struct{} `xml:"mirror"`
	} `xml:"devices>disk"`
}

// domains compares the disks of the domains of a node, as they are now and as they are after a start, with the records of their VMs.
func (d *disks) domains(ctx context.Context, h *Host, agent string) {
	for _, vm := range d.vms {
		if vm.Status.Agent != agent {
			continue
		}
		want := []string{d.path(vm.Spec.Pool, d.seed(vm))}
		for _, id := range vm.Status.Volumes {
			v := d.volumes[id]
			if v == nil {
				d.leak("vm %s has a volume that there is not: %s", vm.Name, id)
				continue
			}
			ending := map[bool]string{true: ".raw", false: ".qcow2"}[v.Spec.Shareable]
			want = append(want, d.path(v.Spec.Pool, d.disk(v, v.LayerName(), ending)))
		}
		slices.Sort(want)
		d.domain(ctx, h, vm, want, "--inactive")
		if vm.Status.Phase == api.PhaseRunning {
			d.domain(ctx, h, vm, want)
		}
	}
}

func (d *disks) domain(ctx context.Context, h *Host, vm *api.VM, want []string, flags ...string) {
	out, err := h.Do(ctx, append([]string{"virsh", "-q", "-c", "qemu:///system", "dumpxml", vm.ID}, flags...)...)
	var dom domainXML
	if err == nil {
		err = xml.Unmarshal([]byte(out), &dom)
	}
	if err != nil {
		d.leak("%s: vm %s: %v", h.Name, vm.Name, err)
		return
	}
	var has []string
	for _, disk := range dom.Disks {
		has = append(has, disk.Source.File+disk.Source.Name)
		if disk.Mirror != nil {
			d.leak("%s: vm %s: a copy of %s is under way", h.Name, vm.Name, has[len(has)-1])
		}
	}
	slices.Sort(has)
	if !slices.Equal(has, want) {
		d.leak("%s: vm %s %v has the disks %v, and should have %v", h.Name, vm.Name, flags, has, want)
	}
}

// path is what the hypervisor calls something in a pool.
func (d *disks) path(pool, name string) string {
	p := d.pools[pool]
	switch {
	case p == nil:
		return name
	case p.Spec.Type == api.PoolRBD:
		return p.Spec.Source.Name + "/" + name
	default:
		return filepath.Join(p.Spec.Path, name)
	}
}
