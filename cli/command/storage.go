package command

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
)

var pools = &noun[*api.Pool]{
	columns: []column[*api.Pool]{
		nameCol[*api.Pool](),
		col("TYPE", func(p *api.Pool) cell { return text(p.Spec.Type) }),
		col("PATH", func(p *api.Pool) cell { return text(p.OnNode().Where()) }),
		col("PHASE", func(p *api.Pool) cell { return phase(p.Status.Phase) }),
		col("CAPACITY", func(p *api.Pool) cell { return size(p.Status.Capacity) }),
		col("USED", func(p *api.Pool) cell { return size(p.Status.Capacity - p.Status.Free) }),
		col("FREE", func(p *api.Pool) cell { return size(p.Status.Free) }),
		col("PROMISED", func(p *api.Pool) cell { return text(promised(&p.Status)) }),
		ageCol[*api.Pool](), idCol[*api.Pool](),
	},
	more: []column[*api.Pool]{
		col("REASON", func(p *api.Pool) cell { return text(p.Status.Reason) }),
		col("VOLUMES", func(p *api.Pool) cell { return number(p.Status.Volumes) }),
		col("SHARED", func(p *api.Pool) cell { return yes(p.Spec.Shared) }),
		{"REACHED BY", func(ctx context.Context, a *app, p *api.Pool) cell { return text(a.reachedBy(ctx, p)) }},
		col("SERVERS", func(p *api.Pool) cell { return text(strings.Join(p.Spec.Source.Hosts, "\n")) }),
		col("SOURCE", func(p *api.Pool) cell { return text(p.Spec.Source.Name) }),
		col("CEPH USER", func(p *api.Pool) cell { return text(p.Spec.Source.User) }),
		refsCol("NODES", api.KindAgent, func(p *api.Pool) []string { return p.Spec.Agents }),
	},
}

func (a *app) poolCmd() *cobra.Command {
	var r api.PoolCreate
	add := addCmd(a, pools, "Make a pool of volumes, of directories of the nodes, of a file server or of a Ceph cluster", &r, &r.Name, &r.Labels)
	a.poolFlags(add, &r)
	a.cephFlags(add, &r)
	a.refsFlag(add, &r.Agents, "agent", api.KindAgent, "node that has it (repeatable; default: all that are ready)")
	return a.group(&cobra.Command{Use: "pool", Short: "Pool management"}, add, pools.getCmd(a), pools.listCmd(a), a.poolUpdateCmd(), pools.delCmd(a))
}

func (a *app) poolUpdateCmd() *cobra.Command {
	var u api.PoolUpdate
	var keyFile string
	update := updateCmd(a, pools, "Change the nodes or labels of a pool, or how its Ceph cluster is reached", func(cmd *cobra.Command) (*api.PoolUpdate, error) {
		u.User = strings.TrimPrefix(u.User, "client.")
		if keyFile == "" {
			return &u, nil
		}
		b, err := readInput(keyFile, cmd.InOrStdin(), api.KiB)
		u.Key = strings.TrimSpace(string(b))
		return &u, err
	},
		func(u *api.PoolUpdate, l *map[string]string) { u.Labels = l })
	update.Long = "Change the nodes or labels of a pool, or how its Ceph cluster is reached.\n\n" +
		"A node that is added must be alive; of a shared pool it must see the same files. A node can be removed when nothing of the\n" +
		"pool is on it, and one that is proven to be down is not asked.\n\n" +
		"Monitors, user and key of a Ceph cluster count once every node of the pool has used the pool with them."
	update.Example = "  gnext pool update shared --add-agent node-4\n  gnext pool update default --remove-agent node-3\n" +
		"  gnext pool update ceph1 --monitors 10.0.0.4,10.0.0.5\n  gnext pool update ceph1 --ceph-user libvirt2 --ceph-key-file libvirt2.key"
	a.refsFlag(update, &u.AddAgents, "add-agent", api.KindAgent, "node that gets the pool (repeatable)")
	a.refsFlag(update, &u.RemoveAgents, "remove-agent", api.KindAgent, "node that loses it (repeatable)")
	fl := update.Flags()
	fl.StringSliceVar(&u.Monitors, "monitors", nil, "of rbd: monitors of the Ceph cluster, as HOST or HOST:PORT; the whole list")
	fl.StringVar(&u.User, "ceph-user", "", "of rbd: another user of the cluster, without client.; needs its key")
	fl.StringVar(&keyFile, "ceph-key-file", "", "of rbd: file with the key of the user, as ceph auth print-key prints it; - is stdin")
	must(update.MarkFlagFilename("ceph-key-file"))
	return update
}
