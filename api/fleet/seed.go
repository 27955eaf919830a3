package fleet

import (
	"context"
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// secret is what is kept encrypted for a VM, sealed to the VM's ID.
type secret struct {
	UserData string `json:"userData"`
}

// Seed returns what a VM's cloud-init gets. Only the agent whose node the VM is on, or is about to be on, may have it; to
// others it makes no difference whether the VM exists.
func (f *Fleet) Seed(ctx context.Context, h auth.Handle, agent, vmID string) (*api.Seed, error) {
	if err := owns(h, agent); err != nil {
		return nil, err
	}
	vm, err := f.findVM(ctx, vmID)
	if err != nil && !problem.Is(err, problem.NotFound) {
		return nil, err
	}
	if err != nil || vm.Status.Agent != agent && vm.Status.MovingTo != agent {
		return nil, problem.New(problem.Forbidden, "vm %s is not on agent %s", vmID, agent).Try("only the agent that runs a VM may read its seed")
	}
	seed := &api.Seed{InstanceID: vm.ID, Hostname: vm.Spec.Hostname, SSHKeys: vm.Spec.SSHKeys}
	if !vm.Spec.UserData {
		return seed, nil
	}
	e, err := f.KV.Get(ctx, store.SecretKey(vm.ID))
	if problem.Is(err, problem.NotFound) {
		return nil, problem.New(problem.Internal, "the user-data of vm %s is gone", vm.Name).Try("delete the VM and create it again")
	}
	if err != nil {
		return nil, err
	}
	plain, err := f.Vault.Open(e.Value, vm.ID)
	if err != nil {
		return nil, err
	}
	var s secret
	if err := json.Unmarshal([]byte(plain), &s); err != nil {
		// The cause is left out: it could quote what is secret.
		return nil, problem.New(problem.Internal, "the user-data of vm %s cannot be read", vm.Name).Try("delete the VM and create it again")
	}
	seed.UserData = s.UserData
	return seed, nil
}
