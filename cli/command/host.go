package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

func (a *app) hostCmd() *cobra.Command {
	del := hosts.delCmd(a)
	del.Short = "Forget hosts that are silent and empty"
	list, get := hosts.listCmd(a), hosts.getCmd(a)
	list.Short, get.Short = "List hosts, with what is promised of them", "Show one host"
	return a.group(&cobra.Command{Use: "host", Short: "Host management"},
		list, get, a.hostSetCmd(),
		a.cordonCmd("cordon", "Let hosts take no new VMs", true), a.cordonCmd("uncordon", "Let hosts take VMs again", false),
		a.drainCmd(), a.undrainCmd(), a.balanceCmd(), a.recoverCmd(), del)
}

func (a *app) sawHost(ctx context.Context) func(*api.Operation) error {
	return func(op *api.Operation) error { return showTarget(ctx, a, hosts, op) }
}

// hostFlags are the flags of "host set" that need more than copying.
type hostFlags struct {
	cpu, memory  float64
	reserved     int64
	add, remove  []string
	fence        string
	passwordFile string
	noFence      bool
}

func (a *app) hostSetCmd() *cobra.Command {
	var f hostFlags
	var uuid []string
	cmd := &cobra.Command{
		Use: "set NAME|UUID", Aliases: []string{"update"}, Short: "Change what is decided about a host",
		Example: "  gnext host set node-1 --cpu-ratio 2 --reserved-memory 4G --label rack=a1\n" +
			"  gnext host set node-1 --fence ipmi://admin@10.0.0.21 --fence-password-file bmc.password",
		ValidArgsFunction: a.completeArgs(api.KindAgent, 1),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := oneRef(api.KindAgent, args, uuid)
		if err != nil {
			return err
		}
		if !changes(cmd) {
			return nothingToChange(cmd)
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		r, err := f.request(cmd, a.Stdin)
		if err != nil {
			return err
		}
		if anyChanged(cmd, "label", "unlabel") {
			// Without the revision of the look: a host that reports has another one every few seconds.
			l, _, err := mergedLabels[*api.Agent](cmd.Context(), c, "", ref, f.add, f.remove)
			if err != nil {
				return err
			}
			r.Labels = &l
		}
		op, err := client.Change(cmd.Context(), c, "", ref, r, a.write(0))
		if err != nil {
			return err
		}
		return a.finish(cmd.Context(), c, op, a.sawHost(cmd.Context()))
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.Float64Var(&f.cpu, "cpu-ratio", 0, "how many vCPUs may be promised for each core, 0.1 to 64")
	fl.Float64Var(&f.memory, "memory-ratio", 0, "how many bytes may be promised for each byte of memory, 0.1 to 4")
	fl.Var(sizeFlag{&f.reserved}, "reserved-memory", "memory that is kept for the host itself, like 4G")
	fl.StringArrayVarP(&f.add, "label", "l", nil, "label to set, as KEY=VALUE (repeatable)")
	fl.StringSliceVar(&f.remove, "unlabel", nil, "key of a label to remove (repeatable)")
	fl.StringVar(&f.fence, "fence", "", "device that can power the host off, as ipmi://USER@HOST:PORT (the port is 623 if it is left out)")
	fl.StringVar(&f.passwordFile, "fence-password-file", "", "file with the password of the fence device; - is stdin")
	fl.BoolVar(&f.noFence, "no-fence", false, "it has no such device")
	cmd.MarkFlagsMutuallyExclusive("fence", "no-fence")
	must(cmd.MarkFlagFilename("fence-password-file"))
	a.uuidFlag(cmd, api.KindAgent, &uuid)
	return a.writes(cmd)
}

// request makes the request out of the flags that were given.
func (f *hostFlags) request(cmd *cobra.Command, stdin io.Reader) (*api.AgentUpdate, error) {
	var r api.AgentUpdate
	if cmd.Flags().Changed("cpu-ratio") {
		r.CPURatio = &f.cpu
	}
	if cmd.Flags().Changed("memory-ratio") {
		r.MemoryRatio = &f.memory
	}
	if cmd.Flags().Changed("reserved-memory") {
		r.ReservedMemory = &f.reserved
	}
	if f.noFence {
		r.Fence = &api.Fence{}
	}
	if f.fence == "" {
		if f.passwordFile != "" {
			return nil, problem.New(problem.Invalid, "--fence-password-file needs --fence").Try("say of which device: --fence ipmi://USER@HOST:PORT")
		}
		return &r, nil
	}
	device, err := parseFence(f.fence)
	if err != nil {
		return nil, err
	}
	if f.passwordFile != "" {
		b, err := readInput(f.passwordFile, stdin, api.KiB)
		if err != nil {
			return nil, err
		}
		device.Password = strings.TrimRight(string(b), "\r\n")
	}
	r.Fence = device
	return &r, nil
}

// parseFence reads ipmi://USER@HOST:PORT. A password in it is refused: others can read command lines.
func parseFence(s string) (*api.Fence, error) {
	bad := func(why string) (*api.Fence, error) {
		return nil, problem.New(problem.Invalid, "the fence device cannot be understood").Because("%s", why).
			Try("write it like ipmi://admin@10.0.0.21:623, and its password into a file for --fence-password-file")
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return bad("it is not a URL") // the error would repeat what may hold a password
	case u.Scheme != api.FenceIPMI:
		return bad(fmt.Sprintf("%q is no kind of device that is known", u.Scheme))
	case u.User == nil || u.User.Username() == "":
		return bad("it has no user")
	case u.Hostname() == "":
		return bad("it has no host")
	case u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "":
		return bad("there is something behind the host")
	}
	if _, has := u.User.Password(); has {
		return bad("there is a password in it, where others can read it")
	}
	address := u.Hostname()
	if p := u.Port(); p != "" {
		address = net.JoinHostPort(address, p)
	}
	return &api.Fence{Driver: api.FenceIPMI, Address: address, User: u.User.Username()}, nil
}

// cordonCmd makes "cordon" and "uncordon", which take several hosts.
func (a *app) cordonCmd(use, short string, cordoned bool) *cobra.Command {
	var uuid []string
	var reason string
	cmd := &cobra.Command{
		Use: use + " NAME|UUID...", Short: short, ValidArgsFunction: a.completeArgs(api.KindAgent, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := someRefs(api.KindAgent, args, uuid)
			if err != nil {
				return err
			}
			r := api.AgentUpdate{Cordoned: &cordoned}
			if cordoned {
				r.CordonReason = &reason
			}
			return a.each(cmd.Context(), refs, 0, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return client.Change(cmd.Context(), c, "", ref, &r, w)
			}, a.sawHost(cmd.Context()))
		},
	}
	if cordoned {
		cmd.Flags().StringVar(&reason, "reason", "", "why, for those who look at the host")
	}
	a.uuidFlag(cmd, api.KindAgent, &uuid)
	return a.writes(cmd)
}

func (a *app) drainCmd() *cobra.Command {
	var uuid []string
	var how api.HostDrain
	var dry bool
	cmd := &cobra.Command{
		Use: "drain NAME|UUID", Short: "Move every VM away from a host, which takes no new ones; exit code 1 if VMs stay behind",
		Long: "Move every VM away from a host, which takes no new ones from then on.\n\n" +
			"It may be sent again, and goes on with what is left. Cancelling keeps what has moved.\n" +
			"The exit code is 1 if VMs stay behind or a move failed.",
		Example:           "  gnext host drain node-1 --dry-run\n  gnext host drain node-1 --copy-storage --parallel 4 --reason 'new memory'",
		ValidArgsFunction: a.completeArgs(api.KindAgent, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindAgent, args, uuid)
			if err != nil {
				return err
			}
			return a.movesOf(cmd.Context(), dry, true, func(c *client.Client) (*api.DryRun, error) {
				return c.PlanDrain(cmd.Context(), ref, how)
			}, func(c *client.Client) (*api.Operation, error) {
				return c.DrainHost(cmd.Context(), ref, how, a.write(0))
			})
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.BoolVar(&dry, "dry-run", false, "show which VM would go where, and do nothing")
	fl.IntVar(&how.Parallel, "parallel", 0, "moves at a time, at most 16 (default 2)")
	fl.BoolVar(&how.CopyStorage, "copy-storage", false, "also move VMs whose disks must be copied")
	fl.BoolVar(&how.Cold, "cold", false, "stop and start VMs that cannot be moved while they run")
	fl.BoolVar(&how.AutoConverge, "auto-converge", false, "slow guests down that change memory faster than it can be sent")
	fl.BoolVar(&how.PostCopy, "post-copy", false, "let guests that do not converge go on at the target")
	fl.StringVar(&how.Reason, "reason", "", "why, for those who look at the host")
	a.uuidFlag(cmd, api.KindAgent, &uuid)
	return a.writes(cmd)
}

func (a *app) balanceCmd() *cobra.Command {
	var how api.HostBalance
	var dry bool
	cmd := &cobra.Command{
		Use: "balance", Short: "Move VMs until the hosts are used evenly; exit code 1 if a move failed", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.movesOf(cmd.Context(), dry, false, func(c *client.Client) (*api.DryRun, error) {
				return c.PlanBalance(cmd.Context(), how)
			}, func(c *client.Client) (*api.Operation, error) {
				return c.BalanceHosts(cmd.Context(), how, a.write(0))
			})
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	fl.BoolVar(&dry, "dry-run", false, "show which VM would go where, and do nothing")
	fl.IntVar(&how.Parallel, "parallel", 0, "moves at a time, at most 16 (default 2)")
	fl.IntVar(&how.Moves, "moves", 0, "moves at most, up to 256 (default 16)")
	return a.writes(cmd)
}

// movesOf plans many moves, or asks for them, sees them through and says what became of each VM. Whole says that a VM that
// stays where it is means failure.
func (a *app) movesOf(ctx context.Context, dry, whole bool, plan func(*client.Client) (*api.DryRun, error), ask func(*client.Client) (*api.Operation, error)) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if dry {
		d, err := plan(c)
		if err != nil {
			return err
		}
		if err := a.printDry(ctx, d); err != nil {
			return err
		}
		return stayed(d.Plan, whole)
	}
	op, err := ask(c)
	if err != nil {
		return err
	}
	return a.finish(ctx, c, op, func(op *api.Operation) error {
		var p api.MovePlan
		if err := json.Unmarshal(op.Result, &p); err != nil {
			return problem.Wrap(err, problem.Internal, "the result of operation %s cannot be read", op.ID)
		}
		if err := a.printMoves(ctx, &p); err != nil {
			return err
		}
		if !allMoved(&p) {
			return exitStatus(1)
		}
		return stayed(&p, whole)
	})
}

func stayed(p *api.MovePlan, whole bool) error {
	if whole && p != nil && len(p.Stays) > 0 {
		return exitStatus(1)
	}
	return nil
}

func (a *app) undrainCmd() *cobra.Command {
	var uuid []string
	cmd := &cobra.Command{
		Use: "undrain NAME|UUID", Short: "End a drain that is under way, and let the host take VMs again", ValidArgsFunction: a.completeArgs(api.KindAgent, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindAgent, args, uuid)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := a.endDrain(cmd.Context(), c, ref); err != nil {
				return err
			}
			takes := false
			op, err := client.Change(cmd.Context(), c, "", ref, &api.AgentUpdate{Cordoned: &takes}, a.write(0))
			if err != nil {
				return err
			}
			return a.finish(cmd.Context(), c, op, a.sawHost(cmd.Context()))
		},
	}
	a.uuidFlag(cmd, api.KindAgent, &uuid)
	return a.writes(cmd)
}

// endDrain cancels the drain that works on a host, if one does, and waits for its end: the host can be changed only then.
func (a *app) endDrain(ctx context.Context, c *client.Client, ref string) error {
	host, err := client.Get[*api.Agent](ctx, c, "", ref)
	if err != nil || host.Operation == "" {
		return err
	}
	op, err := c.Operation(ctx, host.Operation)
	if err != nil || op.Kind != api.OpHostDrain || op.State.Ended() {
		return err
	}
	if _, err := c.Cancel(ctx, op.ID, client.Write{}); err != nil && !problem.Is(err, problem.Conflict) {
		return err // a conflict: it has ended meanwhile
	}
	_, err = a.await(ctx, c, op.ID)
	return err
}

func (a *app) recoverCmd() *cobra.Command {
	var uuid []string
	var how api.HostRecover
	cmd := &cobra.Command{
		Use: "recover NAME|UUID", Short: "Start the HA VMs of a dead host elsewhere, after having made sure that it is off",
		Long: "Start the HA VMs of a dead host elsewhere.\n\n" +
			"This happens by itself when a host is silent and there is a proof that it is off: its fence device says so, or its lease\n" +
			"has ended. Where there is neither, somebody must go and look. --confirm-off says that you have, and that the host is powered\n" +
			"off. If it is not, its VMs run twice and destroy their disks.",
		ValidArgsFunction: a.completeArgs(api.KindAgent, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindAgent, args, uuid)
			if err != nil {
				return err
			}
			if !how.ConfirmOff {
				return problem.New(problem.Invalid, "nobody has confirmed that host %s is off", ref).Because("if it is not, its VMs run twice and destroy their disks").
					Try("go and power it off, and say so: gnext host recover %s --confirm-off", ref)
			}
			return a.movesOf(cmd.Context(), false, false, nil, func(c *client.Client) (*api.Operation, error) {
				return c.RecoverHost(cmd.Context(), ref, how, a.write(0))
			})
		},
	}
	cmd.Flags().BoolVar(&how.ConfirmOff, "confirm-off", false, "I have made sure that the host is powered off")
	a.uuidFlag(cmd, api.KindAgent, &uuid)
	return a.writes(cmd)
}
