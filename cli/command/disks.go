package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// volListCmd makes "vol list", of all volumes, or of those in a pool or of a VM.
func (a *app) volListCmd() *cobra.Command {
	var pool, vm string
	cmd := volumes.listWith(a, func(o *client.ListOptions) { o.Pool, o.VM = pool, vm })
	cmd.Example = "  gnext vol list --pool ceph\n  gnext vol list --vm db"
	a.refFlag(cmd, &pool, "pool", api.KindPool, "only those in this pool")
	a.refFlag(cmd, &vm, "vm", api.KindVM, "only those that this VM has, as its root disk or attached")
	return cmd
}

// disksOf says in which VMs a volume is, and as what.
func (a *app) disksOf(ctx context.Context, v *api.Volume) string {
	var out []string
	if v.Spec.Root {
		out = append(out, api.RootDevice+" of "+a.nameOf(ctx, api.KindVM, v.Spec.VM))
	}
	for _, at := range v.Status.Attachments {
		disk := at.Device + " of " + a.nameOf(ctx, api.KindVM, at.VM)
		if at.ReadOnly {
			disk += " (read-only)"
		}
		out = append(out, disk)
	}
	return strings.Join(out, "\n")
}

// volumesOf says which volumes a VM has, one in each line; those that cannot be found out are IDs.
func (a *app) volumesOf(ctx context.Context, vm *api.VM) string {
	known := map[string]*api.Volume{}
	if c, err := a.client(); err == nil && len(vm.Status.Volumes) > 0 {
		for v, err := range client.All[*api.Volume](ctx, c, vm.Project, client.ListOptions{VM: vm.ID}) {
			if err != nil {
				break
			}
			known[v.ID] = v
		}
	}
	return strings.Join(mapped(vm.Status.Volumes, func(id string) string {
		v := known[id]
		if v == nil {
			return id
		}
		how := api.RootDevice
		if at := v.Attachment(vm.ID); at != nil {
			if how = at.Device; at.ReadOnly {
				how += ", read-only"
			}
		}
		return fmt.Sprintf("%s (%s, %s in pool %s)", v.Name, how, formatSize(v.Spec.Size), a.nameOf(ctx, api.KindPool, v.Spec.Pool))
	}), "\n")
}
