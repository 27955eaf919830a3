package command

import (
	"context"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

var vms = &noun[*api.VM]{
	columns: []column[*api.VM]{
		nameCol[*api.VM](),
		col("PHASE", func(v *api.VM) cell { return phase(v.Status.Phase) }),
		col("VCPUS", func(v *api.VM) cell { return number(v.Spec.VCPUs) }),
		col("MEMORY", func(v *api.VM) cell { return size(v.Spec.Memory) }),
		col("ADDRESSES", func(v *api.VM) cell { return words(v.Status.Addresses) }),
		col("NODE", func(v *api.VM) cell { return text(v.Status.AgentName) }),
		ageCol[*api.VM](),
		idCol[*api.VM](),
	},
	more: []column[*api.VM]{
		col("REASON", func(v *api.VM) cell { return text(v.Status.Reason) }),
		refCol("IMAGE", api.KindImage, func(v *api.VM) string { return v.Spec.Image }),
		col("DISK", func(v *api.VM) cell { return size(v.Spec.RootDisk) }),
		refCol("POOL", api.KindPool, func(v *api.VM) string { return v.Spec.Pool }),
		col("HOSTNAME", func(v *api.VM) cell { return text(v.Spec.Hostname) }),
		refsCol("SUBNETS", api.KindSubnet, func(v *api.VM) []string {
			return mapped(v.Spec.NICs, func(n api.NIC) string { return n.Subnet })
		}),
		refsCol("PORTS", api.KindPort, func(v *api.VM) []string {
			return mapped(v.Spec.NICs, func(n api.NIC) string { return n.Port })
		}),
		{"VOLUMES", func(ctx context.Context, a *app, v *api.VM) cell { return text(a.volumesOf(ctx, v)) }},
		refCol("GROUP", api.KindVMGroup, func(v *api.VM) string { return v.Spec.Group }),
		refCol("PINNED TO", api.KindAgent, func(v *api.VM) string { return v.Spec.NodeID }),
		refCol("MOVING TO", api.KindAgent, func(v *api.VM) string { return v.Status.MovingTo }),
		col("NODE LABELS", func(v *api.VM) cell { return labels(v.Spec.NodeLabels) }),
		col("ARCH", func(v *api.VM) cell { return text(v.Spec.Arch) }),
		col("CPU MODEL", func(v *api.VM) cell { return text(v.Spec.CPUModel) }),
		col("PLACEMENT", func(v *api.VM) cell { return text(v.Spec.Placement) }),
		col("HA", func(v *api.VM) cell { return yes(v.Spec.HA) }),
		col("SSH KEYS", func(v *api.VM) cell { return number(len(v.Spec.SSHKeys)) }),
		col("USER DATA", func(v *api.VM) cell { return yes(v.Spec.UserData) }),
		col("OBSERVED", func(v *api.VM) cell {
			if c := age(v.Status.Observed); c.text != "" {
				return cell{c.text + " ago", c.raw}
			}
			return cell{}
		}),
	},
}

func mapped[T, U any](in []T, f func(T) U) []U {
	out := make([]U, len(in))
	for i, t := range in {
		out[i] = f(t)
	}
	return out
}

func (a *app) vmCmd() *cobra.Command {
	start := a.powerCmd("poweron", "start", "Start VMs", func(cmd *cobra.Command, c *client.Client, ref string, _ api.VMStop, w client.Write) (*api.Operation, error) {
		return c.StartVM(cmd.Context(), a.project, ref, w)
	}, false)
	stop := a.powerCmd("poweroff", "stop", "Stop VMs", func(cmd *cobra.Command, c *client.Client, ref string, how api.VMStop, w client.Write) (*api.Operation, error) {
		return c.StopVM(cmd.Context(), a.project, ref, how, w)
	}, true)
	reboot := a.powerCmd("reboot", "restart", "Stop VMs and start them again", func(cmd *cobra.Command, c *client.Client, ref string, how api.VMStop, w client.Write) (*api.Operation, error) {
		return c.RebootVM(cmd.Context(), a.project, ref, how, w)
	}, true)
	return a.group(&cobra.Command{Use: "vm", Short: "VM management"},
		a.vmAddCmd(), vms.getCmd(a), vms.listCmd(a), a.vmUpdateCmd(), a.vmDelCmd(), start, stop, reboot, a.migrateCmd())
}

func (a *app) vmDelCmd() *cobra.Command {
	var how api.VMDelete
	del := vms.delWith(a, func(cmd *cobra.Command, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		return c.DeleteVM(cmd.Context(), a.project, ref, how, w)
	})
	del.Flags().BoolVar(&how.Snapshots, "snapshots", false, "with all snapshots of their root disks, and all their checkpoints")
	return del
}

func (a *app) powerCmd(use, alias, short string,
	ask func(*cobra.Command, *client.Client, string, api.VMStop, client.Write) (*api.Operation, error), stops bool,
) *cobra.Command {
	var uuid []string
	var revision int64
	var how api.VMStop
	cmd := &cobra.Command{
		Use: use + " NAME|UUID...", Aliases: []string{alias}, Short: short,
		ValidArgsFunction: a.completeArgs(api.KindVM, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := someRefs(api.KindVM, args, uuid)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), refs, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return ask(cmd, c, ref, how, w)
			}, func(op *api.Operation) error { return showTarget(cmd.Context(), a, vms, op) })
		},
	}
	a.uuidFlag(cmd, api.KindVM, &uuid)
	revisionFlag(cmd, &revision)
	if stops {
		cmd.Flags().BoolVar(&how.Force, "force", false, "cut the power instead of asking the guest")
		cmd.Flags().IntVar(&how.Timeout, "timeout", 0, "seconds to wait for the guest before the power is cut (default 60)")
	}
	return a.writes(cmd)
}

// vmFlags are the flags of "vm add" that need more than copying.
type vmFlags struct {
	subnets  []string
	address  string
	userData string
	sshKeys  []string
	labels   []string
	node     []string // labels
	volumes  []string
	attach   []string
	lend     []string // read-only
}

func (a *app) vmAddCmd() *cobra.Command {
	var r api.VMCreate
	var f vmFlags
	var dry bool
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Short: "Make a VM and start it",
		Example: "  gnext vm add hello --image tiny --vcpu 1 --memory 128M --disk 1G --subnet demo-a --sg web\n" +
			"  gnext vm add db --image tiny --memory 4G --subnet front=10.1.0.5 --subnet back --ssh-key ~/.ssh/id_ed25519.pub\n" +
			"  gnext vm add files --image tiny --memory 1G --subnet front --volume 20G,name=files-data --volume 1T,pool=slow\n" +
			"  gnext vm add db2 --image tiny --memory 4G --attach db-data",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Name, err = oneName(api.KindVM, args); err != nil {
				return err
			}
			if err := f.fill(&r, a.Stdin); err != nil {
				return err
			}
			if dry {
				return a.planVM(cmd.Context(), &r)
			}
			return create(cmd, a, vms, &r)
		},
	}
	fl := cmd.Flags()
	fl.SortFlags = false
	a.refFlag(cmd, &r.Image, "image", api.KindImage, "image of the root disk")
	fl.IntVar(&r.VCPUs, "vcpu", 1, "number of virtual CPUs")
	fl.Var(sizeFlag{&r.Memory}, "memory", "memory, like 128M or 4G")
	fl.Var(sizeFlag{&r.RootDisk}, "disk", "size of the root disk, like 20G (default: the size of the image)")
	a.refFlag(cmd, &r.Pool, "pool", api.KindPool, "pool of the root disk (default: the only ready one)")
	fl.StringArrayVar(&f.volumes, "volume", nil, "empty volume to be made with it, as SIZE[,pool=POOL][,name=NAME] (repeatable; default: in the pool of the root disk)")
	must(cmd.RegisterFlagCompletionFunc("volume", cobra.NoFileCompletions))
	a.refsFlag(cmd, &f.attach, "attach", api.KindVolume, "volume that exists, which it has from its first start (repeatable); in a pool that is not shared, the VM goes to where that is")
	a.refsFlag(cmd, &f.lend, "attach-read-only", api.KindVolume, "the same, but it cannot write to it (repeatable)")
	a.refsFlag(cmd, &f.subnets, "subnet", api.KindSubnet, "subnet of a network interface, as NAME or NAME=IP (repeatable)")
	fl.StringVar(&f.address, "ip", "", "fixed address in the only subnet")
	a.refsFlag(cmd, &r.SecurityGroups, "sg", api.KindSecurityGroup, "security group of all interfaces (repeatable)")
	fl.StringVar(&r.Hostname, "hostname", "", "host name (default: the name)")
	fl.StringVar(&f.userData, "user-data", "", "file with cloud-init user-data; - is stdin")
	fl.StringArrayVar(&f.sshKeys, "ssh-key", nil, "public key, or a file with public keys (repeatable)")
	labelsFlag(cmd, &f.labels)
	a.refFlag(cmd, &r.NodeID, "node", api.KindAgent, "pin it to this node")
	fl.StringArrayVar(&f.node, "node-label", nil, "label that its node must have, as KEY=VALUE (repeatable)")
	a.refFlag(cmd, &r.Group, "group", api.KindVMGroup, "VM group it belongs to")
	fl.StringVar(&r.Arch, "arch", "", "architecture of its node, like x86_64 (default: any)")
	fl.StringVar(&r.CPUModel, "cpu-model", "", "named CPU model that its node must be able to give it (default: the node's choice)")
	placementFlag(cmd, &r.Placement, "which of the nodes with room is the better one: spread prefers the emptiest, pack the fullest (default: what the server does)")
	fl.BoolVar(&r.HA, "ha", false, "restart it on another node when its own is dead; its pool must be shared")
	fl.BoolVar(&dry, "dry-run", false, "show where it would be placed and why, and do nothing")
	must(cmd.RegisterFlagCompletionFunc("memory", cobra.NoFileCompletions))
	must(cmd.RegisterFlagCompletionFunc("disk", cobra.NoFileCompletions))
	return a.writes(cmd)
}

// parseVolume reads SIZE[,pool=POOL][,name=NAME].
func parseVolume(s string) (v api.VMVolume, err error) {
	size, rest, _ := strings.Cut(s, ",")
	if v.Size, err = parseSize(size); err != nil {
		return v, err
	}
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, ",")
		key, value, _ := strings.Cut(part, "=")
		switch {
		case key == "pool" && value != "":
			v.Pool = value
		case key == "name" && value != "":
			v.Name = value
		default:
			return v, problem.New(problem.Invalid, "%q says nothing about a volume", part).Try("give it as SIZE[,pool=POOL][,name=NAME], like 20G,pool=fast")
		}
	}
	return v, nil
}

// placementFlag adds the flag that chooses a strategy of placement.
func placementFlag(cmd *cobra.Command, to *string, usage string) {
	cmd.Flags().StringVar(to, "placement", "", usage)
	must(cmd.RegisterFlagCompletionFunc("placement", cobra.FixedCompletions([]string{api.Spread, api.Pack}, cobra.ShellCompDirectiveNoFileComp)))
}

// fill makes the request out of the flags.
func (f *vmFlags) fill(r *api.VMCreate, stdin io.Reader) error {
	var err error
	if r.Labels, err = parseLabels(f.labels); err != nil {
		return err
	}
	if r.NodeLabels, err = parseLabels(f.node); err != nil {
		return err
	}
	if r.Image == "" || r.Memory == 0 {
		return problem.New(problem.Invalid, "a vm needs an image and memory").Try("give --image NAME and --memory SIZE, like --memory 128M")
	}
	for _, s := range f.volumes {
		v, err := parseVolume(s)
		if err != nil {
			return err
		}
		r.Volumes = append(r.Volumes, v)
	}
	for _, v := range f.attach {
		r.Attach = append(r.Attach, api.VMAttach{Volume: v})
	}
	for _, v := range f.lend {
		r.Attach = append(r.Attach, api.VMAttach{Volume: v, ReadOnly: true})
	}
	for _, s := range f.subnets {
		subnet, address, _ := strings.Cut(s, "=")
		r.NICs = append(r.NICs, api.NICRequest{Subnet: subnet, Address: address})
	}
	if f.address != "" {
		if len(r.NICs) != 1 || r.NICs[0].Address != "" {
			return problem.New(problem.Invalid, "--ip needs exactly one --subnet without an address of its own").
				Try("write --subnet NAME=IP for each subnet instead")
		}
		r.NICs[0].Address = f.address
	}
	if f.userData != "" {
		b, err := readInput(f.userData, stdin, api.MaxUserData)
		if err != nil {
			return err
		}
		r.UserData = string(b)
	}
	for _, s := range f.sshKeys {
		keys, err := readSSHKeys(s)
		if err != nil {
			return err
		}
		r.SSHKeys = append(r.SSHKeys, keys...)
	}
	return nil
}

// readInput reads a file, or stdin for "-", of at most limit bytes.
func readInput(name string, stdin io.Reader, limit int64) ([]byte, error) {
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, unreadable(err, name)
		}
		defer file.Close()
		stdin = file
	}
	b, err := io.ReadAll(io.LimitReader(stdin, limit+1))
	if err != nil {
		return nil, unreadable(err, name)
	}
	if int64(len(b)) > limit {
		return nil, problem.New(problem.TooLarge, "%s is longer than %s", name, formatSize(limit))
	}
	return b, nil
}

// readSSHKeys takes a key, or the keys of a file. A private key is refused before it goes anywhere.
func readSSHKeys(s string) ([]string, error) {
	content := s
	if !strings.Contains(s, " ") || !strings.HasPrefix(s, "ssh-") && !strings.HasPrefix(s, "ecdsa-") && !strings.HasPrefix(s, "sk-") {
		b, err := readInput(s, nil, api.MiB)
		if err != nil {
			return nil, err
		}
		content = string(b)
	}
	if strings.Contains(content, "PRIVATE KEY") {
		return nil, problem.New(problem.Invalid, "%s holds a private key", s).Try("give the public key, usually %s.pub", s)
	}
	var keys []string
	for line := range strings.Lines(content) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			keys = append(keys, line)
		}
	}
	if len(keys) == 0 {
		return nil, problem.New(problem.Invalid, "%s holds no key", s).Try("give a file with OpenSSH public keys, one on each line")
	}
	return keys, nil
}

func (a *app) planVM(ctx context.Context, r *api.VMCreate) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	d, err := c.PlanVM(ctx, a.project, r)
	if err != nil {
		return err
	}
	return a.printDry(ctx, d)
}

// create asks for a new resource, sees it through and prints it.
func create[T api.Resource, B client.Creation](cmd *cobra.Command, a *app, n *noun[T], body B) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	op, err := client.Create(cmd.Context(), c, a.project, body, a.write(0))
	if err != nil {
		return err
	}
	return a.finish(cmd.Context(), c, op, func(op *api.Operation) error { return showTarget(cmd.Context(), a, n, op) })
}
