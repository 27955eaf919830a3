package command

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

var volumes = &noun[*api.Volume]{
	columns: []column[*api.Volume]{
		nameCol[*api.Volume](),
		col("SIZE", func(v *api.Volume) cell { return size(v.Spec.Size) }),
		refCol("POOL", api.KindPool, func(v *api.Volume) string { return v.Spec.Pool }),
		col("PHASE", func(v *api.Volume) cell { return phase(v.Status.Phase) }),
		refsCol("ATTACHED TO", api.KindVM, (*api.Volume).VMs),
		{"SNAPSHOTS", func(ctx context.Context, a *app, v *api.Volume) cell { return number(a.snapshotsOf(ctx, v)) }},
		ageCol[*api.Volume](), idCol[*api.Volume](),
	},
	more: []column[*api.Volume]{
		col("REASON", func(v *api.Volume) cell { return text(v.Status.Reason) }),
		refCol("IMAGE", api.KindImage, func(v *api.Volume) string { return v.Spec.Image }),
		refCol("NODE", api.KindAgent, func(v *api.Volume) string { return v.Status.Agent }),
		col("ROOT DISK", func(v *api.Volume) cell { return yes(v.Spec.Root) }),
		col("PROTECTED", func(v *api.Volume) cell { return yes(v.Spec.Protected) }),
		col("SHAREABLE", func(v *api.Volume) cell { return yes(v.Spec.Shareable) }),
		col("LIMITS", func(v *api.Volume) cell { return words(limits(v.Spec.QoS)) }),
		{"DISKS", func(ctx context.Context, a *app, v *api.Volume) cell { return text(a.disksOf(ctx, v)) }},
		refCol("GOES ON FROM", api.KindSnapshot, func(v *api.Volume) string { return v.Status.Snapshot }),
		col("DELETED", func(v *api.Volume) cell { return moment(v.Status.Deleted) }),
		col("EXPIRES", func(v *api.Volume) cell { return moment(v.Status.Expires) }),
	},
}

func moment(t time.Time) cell {
	if t.IsZero() {
		return cell{}
	}
	return text(t.UTC().Format("2006-01-02 15:04:05 UTC"))
}

// limits says what a VM may ask of a volume.
func limits(q api.VolumeQoS) (out []string) {
	for _, l := range []struct {
		name  string
		value int64
		of    func(int64) cell
	}{
		{"iops", q.IOPS, func(n int64) cell { return number(int(n)) }},
		{"iops-burst", q.IOPSBurst, func(n int64) cell { return number(int(n)) }},
		{"bandwidth", q.Bandwidth, size},
		{"bandwidth-burst", q.BandwidthBurst, size},
	} {
		if l.value > 0 {
			out = append(out, l.name+"="+l.of(l.value).text)
		}
	}
	return out
}

// snapshotsOf counts the snapshots of a volume; 0 if they cannot be listed.
func (a *app) snapshotsOf(ctx context.Context, v *api.Volume) int {
	if a.perVol == nil {
		a.perVol = map[string]int{}
		c, err := a.client()
		if err != nil {
			return 0
		}
		for s, err := range client.All[*api.Snapshot](ctx, c, v.Project, client.ListOptions{PageSize: 1000}) {
			if err != nil {
				return 0
			}
			a.perVol[s.Spec.Volume]++
		}
	}
	return a.perVol[v.ID]
}

func (a *app) sawVolume(ctx context.Context) func(*api.Operation) error {
	return func(op *api.Operation) error {
		a.perVol = nil
		return showTarget(ctx, a, volumes, op)
	}
}

func (a *app) volCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "vol", Short: "Vol management"},
		a.volAddCmd(), volumes.getCmd(a), a.volListCmd(), a.volDelCmd(), a.volAttachCmd(), a.volDetachCmd(), a.volResizeCmd(), a.volFlattenCmd(), a.volMigrateCmd(), a.volExportCmd(), a.volRestoreCmd(), a.volUpdateCmd())
}

func (a *app) volAddCmd() *cobra.Command {
	var r api.VolumeCreate
	var aside bool
	add := addCmd(a, volumes, "Make a volume that outlives VMs", &r, &r.Name, &r.Labels)
	add.Example = "  gnext vol add data --size 100G\n  gnext vol add data --size 100G --vm db      # and attaches it\n  gnext vol add copy --from-snapshot before-upgrade"
	fl := add.Flags()
	fl.Var(sizeFlag{&r.Size}, "size", "size, like 100G (default: that of what it is made from)")
	a.refFlag(add, &r.Pool, "pool", api.KindPool, "pool (default: that of what it is copied from, or the only ready one)")
	a.refFlag(add, &r.Image, "image", api.KindImage, "image that it begins with")
	a.refFlag(add, &r.Snapshot, "from-snapshot", api.KindSnapshot, "snapshot that it becomes a copy of")
	a.refFlag(add, &r.Volume, "from-volume", api.KindVolume, "volume that it becomes a copy of; no VM that runs may have that one")
	a.refFlag(add, &r.VM, "vm", api.KindVM, "VM that gets it, whether that runs or not: it is made where that VM reaches it, and attached")
	fl.BoolVar(&aside, "no-attach", false, "with --vm: only make it where that VM reaches it")
	a.refFlag(add, &r.Node, "node", api.KindAgent, "node to keep it, if the pool is not shared (default: the one with the most space)")
	fl.BoolVar(&r.Protected, "protect", false, "it cannot be deleted")
	fl.BoolVar(&r.Shareable, "shareable", false, "it may be attached to several VMs at once, which must agree on who writes; in a pool of files it has no snapshots then")
	qosFlags(add, &r.QoS)
	add.MarkFlagsMutuallyExclusive("image", "from-snapshot", "from-volume")
	add.MarkFlagsMutuallyExclusive("vm", "node")
	plain := add.RunE
	add.RunE = func(cmd *cobra.Command, args []string) error {
		if aside && r.VM == "" {
			return problem.New(problem.Invalid, "--no-attach is for --vm").Try("say for which VM: --vm NAME")
		}
		r.Attach = r.VM != "" && !aside
		return plain(cmd, args)
	}
	must(add.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions))
	return add
}

func qosFlags(cmd *cobra.Command, q *api.VolumeQoS) {
	fl := cmd.Flags()
	fl.Int64Var(&q.IOPS, "iops", 0, "requests per second that a VM may make of it (0: no limit)")
	fl.Int64Var(&q.IOPSBurst, "iops-burst", 0, "requests per second for a short time")
	fl.Var(sizeFlag{&q.Bandwidth}, "bandwidth", "bytes per second, like 100M")
	fl.Var(sizeFlag{&q.BandwidthBurst}, "bandwidth-burst", "bytes per second for a short time")
}

func (a *app) volUpdateCmd() *cobra.Command {
	var name string
	var protect, noProtect, share, noShare, unlimited bool
	var qos api.VolumeQoS
	cmd := updateCmd(a, volumes, "Change what is decided about a volume, while a VM has it", func(cmd *cobra.Command) (*api.VolumeUpdate, error) {
		var u api.VolumeUpdate
		if name != "" {
			u.Name = &name
		}
		if protect || noProtect {
			u.Protected = &protect
		}
		if share || noShare {
			u.Shareable = &share
		}
		if unlimited || anyChanged(cmd, "iops", "iops-burst", "bandwidth", "bandwidth-burst") {
			u.QoS = &qos
		}
		return &u, nil
	}, func(u *api.VolumeUpdate, l *map[string]string) { u.Labels = l })
	cmd.Example = "  gnext vol update data --iops 500 --bandwidth 50M\n  gnext vol update data --name archive --protect"
	fl := cmd.Flags()
	fl.StringVar(&name, "name", "", "new name")
	fl.BoolVar(&protect, "protect", false, "it cannot be deleted")
	fl.BoolVar(&noProtect, "no-protect", false, "it can")
	fl.BoolVar(&share, "shareable", false, "it may be attached to several VMs at once; not changed in pools of files, nor while a VM has it")
	fl.BoolVar(&noShare, "no-shareable", false, "it may not")
	qosFlags(cmd, &qos)
	fl.BoolVar(&unlimited, "no-limits", false, "no limits; otherwise those that are given replace all that there are")
	cmd.MarkFlagsMutuallyExclusive("protect", "no-protect")
	cmd.MarkFlagsMutuallyExclusive("shareable", "no-shareable")
	for _, f := range []string{"iops", "iops-burst", "bandwidth", "bandwidth-burst"} {
		cmd.MarkFlagsMutuallyExclusive("no-limits", f)
	}
	return cmd
}

// volVerb makes a command that asks for one thing of one volume.
func (a *app) volVerb(use, short string, aliases []string, ask func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error)) *cobra.Command {
	var uuid []string
	var revision int64
	cmd := &cobra.Command{
		Use: use + " NAME|UUID", Aliases: aliases, Short: short, ValidArgsFunction: a.completeArgs(api.KindVolume, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindVolume, args, uuid)
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), []string{ref}, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return ask(cmd.Context(), c, ref, w)
			}, a.sawVolume(cmd.Context()))
		},
	}
	cmd.Flags().SortFlags = false
	a.uuidFlag(cmd, api.KindVolume, &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}

func (a *app) volAttachCmd() *cobra.Command {
	var r api.VolumeAttach
	cmd := a.volVerb("attach", "Give a volume to a VM, whether it runs or not", nil, func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		if r.VM == "" {
			return nil, problem.New(problem.Invalid, "no VM is named").Try("say which one: --vm NAME")
		}
		return c.AttachVolume(ctx, a.project, ref, r, w)
	})
	cmd.Example = "  gnext vol attach data --vm db"
	a.refFlag(cmd, &r.VM, "vm", api.KindVM, "VM that gets it")
	cmd.Flags().BoolVar(&r.ReadOnly, "read-only", false, "it cannot write to it; then others may have it, too, if they cannot either")
	return cmd
}

func (a *app) volDetachCmd() *cobra.Command {
	var r api.VolumeDetach
	cmd := a.volVerb("detach", "Take a volume from a VM, whether it runs or not", nil, func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		return c.DetachVolume(ctx, a.project, ref, r, w)
	})
	a.refFlag(cmd, &r.VM, "vm", api.KindVM, "VM that loses it (default: the only one that has it)")
	return cmd
}

func (a *app) volResizeCmd() *cobra.Command {
	var r api.VolumeResize
	cmd := a.volVerb("resize", "Make a volume bigger, whether a VM that has it runs or not", nil, func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		return c.ResizeVolume(ctx, a.project, ref, r, w)
	})
	cmd.Example = "  gnext vol resize data --size 200G"
	cmd.Flags().Var(sizeFlag{&r.Size}, "size", "new size, like 200G; a volume never shrinks")
	must(cmd.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions))
	return cmd
}

func (a *app) volFlattenCmd() *cobra.Command {
	cmd := a.volVerb("flatten", "Make a volume independent of the image that it was made of", nil, func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		return c.FlattenVolume(ctx, a.project, ref, w)
	})
	cmd.Long = "Make a volume independent of the image that it was made of, whether a VM that has it runs or not.\n\n" +
		"What it shows of the image is copied into it. An image that no volume needs can be deleted. In a pool of files the volume must have no snapshots."
	cmd.Example = "  gnext vol flatten data"
	return cmd
}

func (a *app) volMigrateCmd() *cobra.Command {
	var r api.VolumeMigrate
	var dry bool
	cmd := a.volVerb("migrate", "Bring a volume into another pool, while a VM has it", []string{"move"}, func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		if r.Pool == "" {
			return nil, noPoolNamed()
		}
		return c.MigrateVolume(ctx, a.project, ref, r, w)
	})
	plain := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !dry {
			return plain(cmd, args)
		}
		uuid, err := cmd.Flags().GetStringSlice("uuid")
		if err != nil {
			return err
		}
		ref, err := oneRef(api.KindVolume, args, uuid)
		if err != nil {
			return err
		}
		return a.planMigrateVolume(cmd.Context(), ref, r)
	}
	cmd.Long = "Bring a volume into another pool, while a VM has it.\n\n" +
		"The guest goes on and writes meanwhile. The volume keeps its name and its ID; what it was made from is not needed any more. It must have no\n" +
		"snapshots. Until the end the volume is good where it was: cancelled, it stays there, unless the guest has gone on with the copy already."
	cmd.Example = "  gnext vol migrate data --pool ceph --dry-run\n  gnext vol migrate data --pool ceph"
	a.refFlag(cmd, &r.Pool, "pool", api.KindPool, "pool that it goes to")
	cmd.Flags().Var(sizeFlag{&r.Bandwidth}, "bandwidth", "bytes per second at most, like 100MiB (default: no limit)")
	must(cmd.RegisterFlagCompletionFunc("bandwidth", cobra.NoFileCompletions))
	a.refFlag(cmd, &r.Node, "node", api.KindAgent, "node to keep it, if that pool is not shared and no VM has it (default: the one with the most space)")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "show how it would go there and what is in the way, and do nothing")
	return cmd
}

func (a *app) volRestoreCmd() *cobra.Command {
	return a.volVerb("restore", "Bring a volume back from the recycle bin", nil, func(ctx context.Context, c *client.Client, ref string, w client.Write) (*api.Operation, error) {
		return c.RestoreVolume(ctx, a.project, ref, w)
	})
}

func (a *app) volDelCmd() *cobra.Command {
	var uuid []string
	var revision int64
	var how api.VolumeDelete
	cmd := &cobra.Command{
		Use: "del NAME|UUID...", Aliases: []string{"delete", "rm"}, Short: "Put volumes into the recycle bin, or delete them for good",
		Long: "Put volumes into the recycle bin, or delete them for good.\n\n" +
			"What is in the bin can be brought back with gnext vol restore until it expires; gnext vol get says when that is.",
		ValidArgsFunction: a.completeArgs(api.KindVolume, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := someRefs(api.KindVolume, args, uuid)
			if err != nil {
				return err
			}
			done := a.sawVolume(cmd.Context())
			if how.Now {
				done = a.showGone
			}
			return a.each(cmd.Context(), refs, revision, func(c *client.Client, ref string, w client.Write) (*api.Operation, error) {
				return c.DeleteVolume(cmd.Context(), a.project, ref, how, w)
			}, done)
		},
	}
	cmd.Flags().BoolVar(&how.Now, "now", false, "for good, instead of into the recycle bin")
	cmd.Flags().BoolVar(&how.Snapshots, "snapshots", false, "with all their snapshots")
	a.uuidFlag(cmd, api.KindVolume, &uuid)
	revisionFlag(cmd, &revision)
	return a.writes(cmd)
}
