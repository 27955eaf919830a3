package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// poolTypes are the kinds of pools that can be added.
var poolTypes = []string{api.PoolDir, api.PoolNFS, api.PoolGluster, api.PoolRBD}

// poolFlags adds the flags that say where a new pool is.
func (a *app) poolFlags(add *cobra.Command, r *api.PoolCreate) {
	var volume, export string
	add.Long = "Make a pool of volumes.\n\n" +
		"  dir        files in a directory of each node, or, with --shared, in one that all its nodes see\n" +
		"  nfs        files of an NFS server, which the nodes mount themselves\n" +
		"  glusterfs  files of a GlusterFS volume, which the nodes mount themselves\n" +
		"  rbd        block devices in a pool of a Ceph cluster, which is for this pool alone\n\n" +
		"Each node tries it out by using it. A pool that one of them cannot use is not added."
	add.Example = "  gnext pool add default --type dir --path /vms\n" +
		"  gnext pool add g1 --type glusterfs --server 10.0.0.21 --server 10.0.0.22 --volume gv0\n" +
		"  gnext pool add n1 --type nfs --server 10.0.0.30 --export /srv/vms --mount-options vers=4.2\n" +
		"  gnext pool add ceph1 --type rbd --monitors 10.0.0.1,10.0.0.2 --ceph-pool vms --ceph-user libvirt --ceph-key-file libvirt.key"
	fl := add.Flags()
	fl.StringVar(&r.Type, "type", api.PoolDir, "kind of pool: dir, nfs, glusterfs or rbd")
	fl.StringVar(&r.Path, "path", "", "of dir: absolute directory, the same on every node")
	fl.BoolVar(&r.Shared, "shared", false, "of dir: all its nodes see the same files there, as on a network file system; this is tried out")
	fl.StringArrayVar(&r.Source.Hosts, "server", nil, "of nfs and glusterfs: host name or address of the server (of glusterfs repeatable: each knows where the volume is)")
	fl.StringVar(&volume, "volume", "", "of glusterfs: volume, or directory in one, as gv0/vms")
	fl.StringVar(&export, "export", "", "of nfs: exported directory, as the server calls it")
	fl.StringVar(&r.Source.Options, "mount-options", "", "of nfs: options of mount.nfs, as vers=4.2,nconnect=4")
	must(add.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(poolTypes, cobra.ShellCompDirectiveNoFileComp)))
	plain := add.RunE
	add.RunE = func(cmd *cobra.Command, args []string) error {
		var v problem.Validation
		v.Check(volume == "" || r.Type == api.PoolGluster, "volume", volume, "is only for --type %s", api.PoolGluster)
		v.Check(export == "" || r.Type == api.PoolNFS, "export", export, "is only for --type %s", api.PoolNFS)
		if err := v.Err("the flags"); err != nil {
			return err
		}
		if r.Type != api.PoolRBD { // whose flags have said it
			r.Source.Name = volume + export
		}
		return plain(cmd, args)
	}
}

// promised says how much the volumes of a pool may take, against what it has.
func promised(s *api.PoolStatus) string {
	if s.Capacity <= 0 {
		return formatSize(s.Promised)
	}
	out := fmt.Sprintf("%s (%.0f%%)", formatSize(s.Promised), 100*float64(s.Promised)/float64(s.Capacity))
	if s.Promised > s.Capacity {
		out += ", overcommitted"
	}
	return out
}

// reachedBy says which nodes reach a pool, and why the others do not.
func (a *app) reachedBy(ctx context.Context, p *api.Pool) string {
	return strings.Join(mapped(p.Status.Agents, func(g api.PoolAgent) string {
		name := a.nameOf(ctx, api.KindAgent, g.Agent)
		if g.Reaches {
			return name
		}
		return "not by " + name + ": " + g.Reason
	}), "\n")
}
