package admission

import (
	"cmp"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// ready checks that something that no operation holds is whole, and not in the recycle bin. A snapshot is there with its volume, which
// is checked before it: what the answer says to do is to be done with the volume.
func ready(r api.Phased) error {
	m, p := r.GetMeta(), r.GetPhase()
	if m.Operation != "" || p == api.PhaseReady { // of what is held, whoever holds it next tells
		return nil
	}
	no := problem.New(problem.Conflict, "%s %s cannot be used", r.ResourceKind().Singular(), m.Name)
	if v, is := r.(*api.Volume); is && p == api.PhaseUnavailable { // of all that is said of its pool, its reason has the name
		return no.Away().Because("%s", cmp.Or(v.Status.Reason, "its pool is unavailable")).
			Try("nothing of it is lost: ask again when the pool can be used; see: gnext pool get %s", v.Spec.Pool)
	}
	if p == api.PhaseDeleted {
		return no.Because("it is in the recycle bin").Try("bring it back: gnext vol restore %s", m.Name)
	}
	noun := map[api.Kind]string{api.KindSnapshot: "snap", api.KindCheckpoint: "cp"}[r.ResourceKind()]
	return no.Because("it is %s", p).Try("see what is wrong with it: gnext %s get %s", cmp.Or(noun, "vol"), m.Name)
}

// poolAway says that a pool cannot be used now, and why.
func poolAway(p *api.Pool) *problem.Problem {
	return problem.New(problem.Unavailable, "pool %s cannot be used", p.Name).Away().
		Because("it is %s: %s", p.Status.Phase, cmp.Or(p.Status.Reason, "no node can use it")).
		Try("ask again when it can be, or use another pool; see: gnext pool get %s", p.Name)
}

// noPool says why none of the pools that there are can be used without being named.
func noPool(all []*api.Pool) *problem.Problem {
	no := problem.New(problem.Conflict, "there is no pool that is ready").Try("add one: gnext pool add NAME --type dir --path /vms")
	var why []string
	for _, p := range all {
		if p.Status.Phase == api.PhaseUnavailable {
			why = append(why, "pool "+p.Name+" is unavailable: "+p.Status.Reason)
		}
	}
	if len(why) == 0 {
		return no
	}
	return no.Away().Because("%s", strings.Join(first(why, 3), "; ")).Try("ask again when one can be used; see: gnext pool get NAME")
}

// reachable checks that the disks of a VM can be changed: that its node can be asked, and the guest is not halted.
func reachable(vm *api.VM, no *problem.Problem) error {
	p := vm.Status.Phase
	if vm.Operation != "" || p == api.PhaseRunning || p == api.PhaseStopped {
		return nil
	}
	why := string(p)
	if vm.Status.Reason != "" {
		why += ": " + vm.Status.Reason
	}
	no = no.Because("vm %s is %s", vm.Name, why)
	switch p {
	case api.PhasePaused:
		return no.Try("have it go on (gnext vm start %s), or stop it (gnext vm poweroff %s), and ask again", vm.Name, vm.Name)
	case api.PhaseUnknown:
		return no.Away().Try("ask again when its node reports; see: gnext host get %s", cmp.Or(vm.Status.AgentName, "NODE"))
	}
	return no.Try("see: gnext vm get %s", vm.Name)
}

// taken says what it means that a name is claimed already; one in the recycle bin keeps its own.
func (c *acceptance) taken(kind api.Kind, project, name string) error {
	no := problem.New(problem.Conflict, "the name %q is taken", name)
	var held api.Phased
	var volume *api.Volume
	var err error
	switch kind {
	case api.KindVolume:
		volume, err = store.Find[api.Volume](c.ctx, c.kv, c.h, project, name)
		held = volume
	case api.KindSnapshot:
		var s *api.Snapshot
		if s, err = store.Find[api.Snapshot](c.ctx, c.kv, c.h, project, name); err == nil {
			held = s
			volume, err = store.Get[api.Volume](c.ctx, c.kv, c.h, project, s.Spec.Volume)
		}
	}
	if err != nil || held == nil || held.GetPhase() != api.PhaseDeleted { // who has it may be gone again
		return no.Because("there is %s of that name already", kind.One()).Try("choose another name")
	}
	with := ""
	if kind == api.KindSnapshot {
		with = " with its volume " + volume.Name
	}
	return no.Because("the %s of that name is in the recycle bin%s", kind.Singular(), with).
		Try("bring it back (gnext vol restore %s), delete it for good (gnext vol del %s --now), or choose another name", volume.Name, volume.Name)
}
