package command

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

func (a *app) volExportCmd() *cobra.Command {
	return a.exportCmd(api.KindVolume, &cobra.Command{
		Short: "Download a volume, in this or another format",
		Long: "Download a volume. It is made a file first, which the server keeps for a day. No VM that runs may have it: of one that does, take a\n" +
			"snapshot, and export that (gnext snap export). A download that was interrupted goes on when it is run again with the same\n" +
			"--idempotency-key.",
		Example: "  gnext vol export data --file data.qcow2\n  gnext vol export data --file data.vmdk --format vmdk",
	}, func(_ context.Context, _ *client.Client, ref string) (string, string, error) { return ref, "", nil })
}

func (a *app) snapExportCmd() *cobra.Command {
	return a.exportCmd(api.KindSnapshot, &cobra.Command{
		Short:   "Download what a volume was when a snapshot was taken",
		Long:    "Download what a volume was when a snapshot was taken, whether the VM that has the volume runs or not.",
		Example: "  gnext snap export before-upgrade --file before.qcow2",
	}, func(ctx context.Context, c *client.Client, ref string) (string, string, error) {
		s, err := client.Get[*api.Snapshot](ctx, c, a.project, ref)
		if err != nil {
			return "", "", err
		}
		return s.Spec.Volume, s.ID, nil
	})
}

// exportCmd completes a command that downloads something of a volume: which volume, and which snapshot of it, find says.
func (a *app) exportCmd(kind api.Kind, cmd *cobra.Command, find func(ctx context.Context, c *client.Client, ref string) (volume, snapshot string, err error)) *cobra.Command {
	var uuid []string
	var file, format string
	cmd.Use, cmd.ValidArgsFunction = "export NAME|UUID", a.completeArgs(kind, 1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ref, err := oneRef(kind, args, uuid)
		if err != nil {
			return err
		}
		if err := vacant(file); err != nil {
			return err
		}
		c, err := a.client()
		if err != nil {
			return err
		}
		volume, snapshot, err := find(cmd.Context(), c, ref)
		if err != nil {
			return err
		}
		op, err := c.ExportVolume(cmd.Context(), a.project, volume, api.VolumeExport{Format: format, Snapshot: snapshot}, a.write(0))
		if err != nil {
			return err
		}
		d, err := a.made(cmd.Context(), c, op, client.Download{Volume: op.Target.ID, Export: op.ID, Format: format})
		if err != nil {
			return err
		}
		return a.fetch(cmd.Context(), c, d, file)
	}
	exportFlags(cmd, &file, &format)
	a.uuidFlag(cmd, kind, &uuid)
	return a.writes(cmd)
}
