package fleet

import (
	"strings"
	"sync"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// index tells which VMs are where. To look through all VMs with every report would cost more than all else that follows from
// it; so the index is kept, and brought up to date by what has changed.
type index struct {
	mu       sync.Mutex
	revision int64                        // of the cache; 0: it was never made
	places   map[string]place             // by VM
	on       map[string]map[string]string // projects of VMs, by agent and VM
}

// place is where a VM's record is, and where the VM.
type place struct{ project, agent string }

// catchUp makes the index show what the cache shows.
func (x *index) catchUp(c *store.Cache, h auth.Handle) error {
	changes, revision, err := c.Changed(x.revision)
	if problem.Is(err, problem.Precondition) {
		return x.rebuild(c, h)
	}
	if err != nil {
		return err
	}
	prefix := store.KindPrefix(api.KindVM)
	for _, change := range changes {
		rest, ok := strings.CutPrefix(change.Key, prefix)
		if !ok {
			continue
		}
		project, id, _ := strings.Cut(rest, "/")
		vm, err := store.GetCached[api.VM](c, h, project, id)
		switch {
		case problem.Is(err, problem.NotFound):
			x.drop(id)
		case err != nil:
			return err
		default:
			x.put(vm)
		}
	}
	x.revision = revision
	return nil
}

func (x *index) rebuild(c *store.Cache, h auth.Handle) error {
	all, err := store.ListCached[api.VM](c, h, "*", "", 0, nil)
	if err != nil {
		return err
	}
	x.places, x.on = make(map[string]place, len(all.Items)), map[string]map[string]string{}
	for _, vm := range all.Items {
		x.put(vm)
	}
	x.revision = all.Revision
	return nil
}

func (x *index) put(vm *api.VM) {
	x.drop(vm.ID)
	x.places[vm.ID] = place{vm.Project, vm.Status.Agent}
	if x.on[vm.Status.Agent] == nil {
		x.on[vm.Status.Agent] = map[string]string{}
	}
	x.on[vm.Status.Agent][vm.ID] = vm.Project
}

func (x *index) drop(id string) {
	p, ok := x.places[id]
	if !ok {
		return
	}
	delete(x.places, id)
	delete(x.on[p.agent], id)
	if len(x.on[p.agent]) == 0 {
		delete(x.on, p.agent)
	}
}

// vmsOn returns the VMs that are on a node. They are the cache's: who wants to change one makes a copy.
func (f *Fleet) vmsOn(agent string) ([]*api.VM, error) {
	f.index.mu.Lock()
	defer f.index.mu.Unlock()
	if err := f.index.catchUp(f.Cache, f.self); err != nil {
		return nil, err
	}
	out := make([]*api.VM, 0, len(f.index.on[agent]))
	for id, project := range f.index.on[agent] {
		vm, err := store.GetCached[api.VM](f.Cache, f.self, project, id)
		if err != nil && !problem.Is(err, problem.NotFound) {
			return nil, err
		}
		if err == nil && vm.Status.Agent == agent {
			out = append(out, vm)
		}
	}
	return out, nil
}

// cachedVM returns a VM as the cache has it, whatever project it is in; nil if it has none.
func (f *Fleet) cachedVM(id string) (*api.VM, error) {
	f.index.mu.Lock()
	defer f.index.mu.Unlock()
	if err := f.index.catchUp(f.Cache, f.self); err != nil {
		return nil, err
	}
	p, ok := f.index.places[id]
	if !ok {
		return nil, nil
	}
	vm, err := store.GetCached[api.VM](f.Cache, f.self, p.project, id)
	if problem.Is(err, problem.NotFound) {
		return nil, nil
	}
	return vm, err
}
