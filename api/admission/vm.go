package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// CreateVM accepts a new VM, with its root volume and its ports.
func (a *Admission) CreateVM(ctx context.Context, h auth.Handle, o Options, req api.VMCreate) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	shown := req
	if shown.UserData != "" {
		shown.UserData = hiddenUserData
	}
	o.hidden = digest(req.UserData)
	return a.accept(ctx, h, o, api.OpVMCreate, shown, func(c *acceptance) error {
		_, err := a.createVM(c, req)
		return err
	})
}

// Preview tells whether CreateVM would accept the request now, without accepting it. It returns the VM as it would be made.
func (a *Admission) Preview(ctx context.Context, h auth.Handle, o Options, req api.VMCreate) (vm *api.VM, err error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	err = a.rehearse(ctx, h, o, api.OpVMCreate, func(c *acceptance) (err error) {
		vm, err = a.createVM(c, req)
		return err
	})
	return vm, err
}

// hiddenUserData stands in an operation's request where the user-data was.
const hiddenUserData = "(hidden)"

func (a *Admission) createVM(c *acceptance, req api.VMCreate) (*api.VM, error) {
	p := c.opts.Project
	vm := &api.VM{Meta: c.meta(p, req.Name, req.Labels)}
	image, err := store.Find[api.Image](c.ctx, c.kv, c.h, p, req.Image)
	if err != nil {
		return nil, err
	}
	c.deprecated(image)
	pool, err := a.poolFor(c, req.Pool)
	if err != nil {
		return nil, err
	}
	disk := req.RootDisk
	if disk == 0 {
		disk = (image.Status.VirtualSize + api.MiB - 1) / api.MiB * api.MiB
	}
	if disk < image.Status.VirtualSize {
		return nil, problem.New(problem.Invalid, "the root disk of %s is too small", api.ExactSize(disk)).
			Because("image %s has %s", image.Name, api.ExactSize(image.Status.VirtualSize)).Try("ask for at least that, or leave the size out")
	}
	volume := &api.Volume{
		Meta: c.meta(p, partName(req.Name, "root"), nil),
		Spec: api.VolumeSpec{Size: disk, Pool: pool.ID, Image: image.ID, VM: vm.ID, Root: true},
	}
	if err := c.needs(api.RefTo(volume), image); err != nil {
		return nil, err
	}
	if err := c.needs(api.RefTo(volume), pool); err != nil {
		return nil, err
	}
	vm.Spec = api.VMSpec{
		VCPUs: req.VCPUs, Memory: req.Memory, Image: image.ID, RootDisk: disk, Pool: pool.ID,
		Hostname: req.Hostname, SSHKeys: req.SSHKeys, UserData: req.UserData != "", HA: req.HA,
	}
	if vm.Spec.Placing, err = a.placing(c, vm, req.Placing); err != nil {
		return nil, err
	}
	if err := restartable(vm, pool); err != nil {
		return nil, err
	}
	if vm.Spec.Hostname == "" {
		vm.Spec.Hostname = req.Name
	}
	vm.Status.Volumes = []string{volume.ID}
	for i, n := range req.NICs {
		if err := a.addNIC(c, vm, i, n, req.SecurityGroups); err != nil {
			return nil, err
		}
	}
	use := quotaUse{VMs: 1, VCPUs: vm.Spec.VCPUs, Memory: vm.Spec.Memory, Disk: vm.Spec.RootDisk}
	value, err := use.encode()
	if err != nil {
		return nil, err
	}
	c.claims(store.QuotaClaim(p, vm.ID), value)
	more, err := a.addVolumes(c, vm, pool, req.Volumes)
	if err != nil {
		return nil, err
	}
	use.Disk += more
	if err := a.withinQuota(c, vm, use); err != nil {
		return nil, err
	}
	if err := a.giveVolumes(c, vm, firstDevice+len(req.Volumes), req.Attach); err != nil {
		return nil, err
	}
	if err := a.keepSecret(c, vm.ID, req.UserData); err != nil {
		return nil, err
	}
	c.makes(vm, api.PhaseRunning)
	c.makes(volume, api.PhaseReady)
	return vm, c.target(vm)
}

// partName names what a VM is made of: readable, and not in the way of names that people choose.
func partName(vm, part string) string {
	if len(vm) > 40 {
		vm = strings.TrimRight(vm[:40], "-")
	}
	return fmt.Sprintf("%s-%s-%s", vm, part, api.NewID()[:8])
}

func (a *Admission) addNIC(c *acceptance, vm *api.VM, i int, n api.NICRequest, defaults []string) error {
	groups := n.SecurityGroups
	if groups == nil {
		groups = defaults
	}
	port := &api.Port{Meta: c.meta(vm.Project, partName(vm.Name, fmt.Sprintf("eth%d", i)), nil)}
	port.Spec = api.PortSpec{VM: vm.ID, Hostname: vm.Spec.Hostname}
	if err := a.plug(c, port, n.Subnet, n.Address, groups); err != nil {
		return err
	}
	vm.Spec.NICs = append(vm.Spec.NICs, api.NIC{Port: port.ID, Subnet: port.Spec.Subnet, Address: n.Address, SecurityGroups: port.Spec.SecurityGroups})
	vm.Status.Addresses = append(vm.Status.Addresses, port.Spec.Address)
	return nil
}

// poolFor finds the pool that was asked for, or the only one there is.
func (a *Admission) poolFor(c *acceptance, ref string) (*api.Pool, error) {
	if ref != "" {
		return store.Find[api.Pool](c.ctx, c.kv, c.h, "", ref)
	}
	pools, err := store.List[api.Pool](c.ctx, c.kv, c.h, "")
	if err != nil {
		return nil, err
	}
	var ready []*api.Pool
	var names []string
	for _, p := range pools {
		if p.Status.Phase == api.PhaseReady {
			ready, names = append(ready, p), append(names, p.Name)
		}
	}
	switch len(ready) {
	case 1:
		return ready[0], nil
	case 0:
		return nil, noPool(pools)
	default:
		slices.Sort(names)
		return nil, problem.New(problem.Invalid, "no pool is named").Because("there are several: %s", strings.Join(first(names, 5), ", ")).Try("say which one: --pool NAME")
	}
}

// Secret is what is kept encrypted for a VM.
type Secret struct {
	UserData string `json:"userData"`
}

func (a *Admission) keepSecret(c *acceptance, vm, userData string) error {
	if userData == "" {
		return nil
	}
	plain, err := json.Marshal(Secret{UserData: userData})
	if err != nil {
		return problem.Wrap(err, problem.Internal, "the secret cannot be encoded")
	}
	sealed, err := a.seal.Seal(string(plain), vm)
	if err != nil {
		return err
	}
	c.claims(store.SecretKey(vm), string(sealed))
	return nil
}

// DeleteVM accepts the removal of a VM and of all that was made for it.
func (a *Admission) DeleteVM(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.DeleteVMWith(ctx, h, o, ref, api.VMDelete{})
}

// vmDeleteRequest is a request to delete a VM as an operation remembers it.
type vmDeleteRequest struct {
	targetRequest
	api.VMDelete
}

// DeleteVMWith is DeleteVM, and says what of the VM goes with it that may have been meant to stay.
func (a *Admission) DeleteVMWith(ctx context.Context, h auth.Handle, o Options, ref string, req api.VMDelete) (*api.Operation, error) {
	return a.accept(ctx, h, o, api.OpVMDelete, vmDeleteRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		vm, err := store.Find[api.VM](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		if err := c.deletes(vm); err != nil {
			return err
		}
		c.releases(store.QuotaClaim(vm.Project, vm.ID), store.SecretKey(vm.ID))
		if vm.Spec.Group != "" {
			c.releases(groupClaim(vm.Spec.Group, vm))
		}
		checkpoints, err := a.leaveCheckpoints(c, vm, req)
		if err != nil {
			return err
		}
		for _, id := range vm.Status.Volumes {
			v, err := store.Get[api.Volume](ctx, a.kv, h, vm.Project, id)
			if err != nil {
				return err
			}
			if err := a.leaveVM(c, vm, v, req, checkpoints); err != nil {
				return err
			}
		}
		for _, n := range vm.Spec.NICs {
			p, err := store.Get[api.Port](ctx, a.kv, h, vm.Project, n.Port)
			if err != nil {
				return err
			}
			if err := c.holds(p, api.PhaseDeleting, ""); err != nil {
				return err
			}
			c.releases(portClaims(p)...)
		}
		return nil
	})
}

// StartVM accepts powering a VM on.
func (a *Admission) StartVM(ctx context.Context, h auth.Handle, o Options, ref string) (*api.Operation, error) {
	return a.power(ctx, h, o, api.OpVMStart, ref, api.VMStop{}, api.PhaseRunning)
}

// StopVM accepts powering a VM off.
func (a *Admission) StopVM(ctx context.Context, h auth.Handle, o Options, ref string, req api.VMStop) (*api.Operation, error) {
	return a.power(ctx, h, o, api.OpVMStop, ref, req, api.PhaseStopped)
}

// RebootVM accepts restarting a VM.
func (a *Admission) RebootVM(ctx context.Context, h auth.Handle, o Options, ref string, req api.VMStop) (*api.Operation, error) {
	return a.power(ctx, h, o, api.OpVMReboot, ref, req, api.PhaseRunning)
}

// powerRequest is a power request as an operation remembers it.
type powerRequest struct {
	targetRequest
	api.VMStop
}

func (a *Admission) power(ctx context.Context, h auth.Handle, o Options, kind, ref string, req api.VMStop, then api.Phase) (*api.Operation, error) {
	if err := req.Validate(); err != nil {
		return nil, err
	}
	return a.accept(ctx, h, o, kind, powerRequest{targetRequest{ref}, req}, func(c *acceptance) error {
		vm, err := store.Find[api.VM](ctx, a.kv, h, o.Project, ref)
		if err != nil {
			return err
		}
		if kind == api.OpVMReboot && vm.Status.Phase != api.PhaseRunning && vm.Operation == "" {
			return problem.New(problem.Conflict, "vm %s cannot be rebooted", vm.Name).Because("it is %s", vm.Status.Phase).Try("start it: gnext vm start %s", vm.Name)
		}
		if err := c.target(vm); err != nil {
			return err
		}
		if err := c.input(req); err != nil {
			return err
		}
		return c.holds(vm, vm.Status.Phase, then)
	})
}
