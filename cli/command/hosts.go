package command

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// hosts are the agents as operators see them: what a node can take, and whether it does.
var hosts = &noun[*api.Agent]{
	columns: []column[*api.Agent]{
		nameCol[*api.Agent](),
		col("STATE", func(g *api.Agent) cell { return phase(g.Status.Phase) }),
		col("SINCE", func(g *api.Agent) cell { return age(g.Status.Since) }),
		col("ARCH", func(g *api.Agent) cell { return text(g.Status.Inventory.Arch) }),
		col("CPU", func(g *api.Agent) cell {
			return text(fmt.Sprintf("%d/%d", g.Status.Claimed.VCPUs, promisable(g).VCPUs))
		}),
		col("MEMORY", func(g *api.Agent) cell {
			have, all := g.Status.Claimed.Memory, promisable(g).Memory
			return cell{formatSize(have) + "/" + formatSize(all), fmt.Sprintf("%d/%d", have, all)}
		}),
		{"VMS", func(ctx context.Context, a *app, g *api.Agent) cell { return a.vmsOn(ctx, g.ID) }},
		col("REASON", func(g *api.Agent) cell { return text(hostReason(g)) }),
		idCol[*api.Agent](),
	},
	more: append([]column[*api.Agent]{
		col("FENCE", func(g *api.Agent) cell {
			if f := g.Spec.Fence; f != nil {
				return text(fmt.Sprintf("%s://%s@%s", f.Driver, f.User, f.Address))
			}
			return cell{}
		}),
		col("LEASE", func(g *api.Agent) cell {
			if g.Status.Lease.Until.IsZero() {
				return cell{}
			}
			s := "until " + g.Status.Lease.Until.UTC().Format("2006-01-02 15:04:05 UTC")
			if !g.Status.Lease.Guarded {
				s += ", without a guardian: its end proves nothing"
			}
			return text(s)
		}),
		col("PROOF", func(g *api.Agent) cell {
			if p := g.Status.Proof; p != nil {
				return text(proofLine(p))
			}
			return cell{}
		}),
		col("MEMORY RATIO", func(g *api.Agent) cell { return text(ratio(g.Spec.MemoryRatio)) }),
		col("NUMA CELLS", func(g *api.Agent) cell { return optionalNumber(len(g.Status.Inventory.NUMA)) }),
		col("HUGE PAGES", func(g *api.Agent) cell {
			return text(strings.Join(mapped(g.Status.Inventory.HugePages, func(p api.HugePages) string {
				return fmt.Sprintf("%s: %d of %d free", formatSize(p.Size), p.Free, p.Total)
			}), "\n"))
		}),
		col("NICS", func(g *api.Agent) cell {
			return text(strings.Join(mapped(g.Status.Inventory.NICs, func(n api.HostNIC) string {
				state := "down"
				if n.Up {
					state = "up"
				}
				return strings.TrimSpace(fmt.Sprintf("%s %s %s", n.Name, state, n.MAC))
			}), "\n"))
		}),
		col("DEVICES", func(g *api.Agent) cell {
			return text(strings.Join(mapped(g.Status.Inventory.Devices, func(d api.HostDevice) string {
				return d.Address + " " + d.Vendor + " " + d.Product
			}), "\n"))
		}),
	}, agents.more[1:]...), // but for the reason, which is a column already
}

func ratio(f float64) string {
	if f == 0 {
		return ""
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

func optionalNumber(n int) cell {
	if n == 0 {
		return cell{}
	}
	return number(n)
}

// promisable is how much of a node can be promised in all.
func promisable(g *api.Agent) api.Amount {
	inv, spec := g.Status.Inventory, g.Spec
	return api.Amount{
		VCPUs:  int(float64(inv.Cores) * cmp.Or(spec.CPURatio, 1)),
		Memory: max(0, int64(float64(inv.Memory)*cmp.Or(spec.MemoryRatio, 1))-spec.ReservedMemory),
	}
}

// hostReason says why a host is not ready: what is seen of it, or what somebody said who cordoned it.
func hostReason(g *api.Agent) string {
	if !g.Spec.Cordoned || g.Spec.CordonReason == "" {
		return g.Status.Reason
	}
	if g.Status.Reason == "" || g.Status.Reason == g.Spec.CordonReason {
		return g.Spec.CordonReason
	}
	return g.Spec.CordonReason + "; " + g.Status.Reason
}

// vmsOn counts the VMs of all projects on a node. They are listed once.
func (a *app) vmsOn(ctx context.Context, agent string) cell {
	if a.perHost == nil {
		a.perHost = map[string]int{}
		c, err := a.client()
		if err != nil {
			return cell{}
		}
		for p, err := range client.All[*api.Project](ctx, c, "", client.ListOptions{}) {
			if err != nil {
				break // a count is not worth an error
			}
			for vm, err := range client.All[*api.VM](ctx, c, p.Name, client.ListOptions{PageSize: 1000}) {
				if err != nil {
					break
				}
				a.perHost[vm.Status.Agent]++
			}
		}
	}
	return number(a.perHost[agent])
}
