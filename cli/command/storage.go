package command

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

var images = &noun[*api.Image]{
	columns: []column[*api.Image]{
		nameCol[*api.Image](),
		col("FORMAT", func(i *api.Image) cell { return text(i.Spec.Format) }),
		col("PHASE", func(i *api.Image) cell { return phase(i.Status.Phase) }),
		col("SIZE", func(i *api.Image) cell { return optionalSize(i.Status.Size) }),
		col("VIRTUAL SIZE", func(i *api.Image) cell { return optionalSize(i.Status.VirtualSize) }),
		ageCol[*api.Image](), idCol[*api.Image](),
	},
	more: []column[*api.Image]{
		col("REASON", func(i *api.Image) cell { return text(i.Status.Reason) }),
		col("SOURCE", func(i *api.Image) cell { return text(i.Spec.Source) }),
		col("SHA256", func(i *api.Image) cell { return text(i.Status.SHA256) }),
	},
}

var volumes = &noun[*api.Volume]{
	columns: []column[*api.Volume]{
		nameCol[*api.Volume](),
		col("SIZE", func(v *api.Volume) cell { return size(v.Spec.Size) }),
		refCol("POOL", api.KindPool, func(v *api.Volume) string { return v.Spec.Pool }),
		refCol("VM", api.KindVM, func(v *api.Volume) string { return v.Spec.VM }),
		col("PHASE", func(v *api.Volume) cell { return phase(v.Status.Phase) }),
		ageCol[*api.Volume](), idCol[*api.Volume](),
	},
	more: []column[*api.Volume]{
		col("REASON", func(v *api.Volume) cell { return text(v.Status.Reason) }),
		refCol("IMAGE", api.KindImage, func(v *api.Volume) string { return v.Spec.Image }),
		refCol("NODE", api.KindAgent, func(v *api.Volume) string { return v.Status.Agent }),
		col("ROOT DISK", func(v *api.Volume) cell { return yes(v.Spec.Root) }),
	},
}

var pools = &noun[*api.Pool]{
	columns: []column[*api.Pool]{
		nameCol[*api.Pool](),
		col("TYPE", func(p *api.Pool) cell { return text(p.Spec.Type) }),
		col("PATH", func(p *api.Pool) cell { return text(p.Spec.Path) }),
		col("PHASE", func(p *api.Pool) cell { return phase(p.Status.Phase) }),
		col("CAPACITY", func(p *api.Pool) cell { return size(p.Status.Capacity) }),
		col("FREE", func(p *api.Pool) cell { return size(p.Status.Free) }),
		ageCol[*api.Pool](), idCol[*api.Pool](),
	},
	more: []column[*api.Pool]{
		col("REASON", func(p *api.Pool) cell { return text(p.Status.Reason) }),
		col("SHARED", func(p *api.Pool) cell { return yes(p.Spec.Shared) }),
		refsCol("NODES", api.KindAgent, func(p *api.Pool) []string { return p.Spec.Agents }),
	},
}

func (a *app) volCmd() *cobra.Command {
	return a.group(&cobra.Command{Use: "vol", Short: "Vol management"}, volumes.getCmd(a), volumes.listCmd(a))
}

func (a *app) poolCmd() *cobra.Command {
	var r api.PoolCreate
	add := addCmd(a, pools, "Make a directory of the nodes a pool of volumes", &r, &r.Name, &r.Labels)
	add.Example = "  gnext pool add default --type dir --path /vms"
	add.Flags().StringVar(&r.Type, "type", api.PoolDir, "kind of pool: dir")
	add.Flags().StringVar(&r.Path, "path", "", "absolute directory, the same on every node")
	add.Flags().BoolVar(&r.Shared, "shared", false, "all its nodes see the same files there: a network file system; this is tried out")
	a.refsFlag(add, &r.Agents, "agent", api.KindAgent, "node that has it (repeatable; default: all that are ready)")
	must(add.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{api.PoolDir}, cobra.ShellCompDirectiveNoFileComp)))
	return a.group(&cobra.Command{Use: "pool", Short: "Pool management"}, add, pools.getCmd(a), pools.listCmd(a), a.poolUpdateCmd(), pools.delCmd(a))
}

func (a *app) poolUpdateCmd() *cobra.Command {
	var u api.PoolUpdate
	update := updateCmd(a, pools, "Change the nodes or labels of a pool", func(*cobra.Command) (*api.PoolUpdate, error) { return &u, nil },
		func(u *api.PoolUpdate, l *map[string]string) { u.Labels = l })
	update.Long = "Change the nodes or labels of a pool.\n\n" +
		"A node that is added must be alive; of a shared pool it must see the same files. A node can be removed when nothing of the\n" +
		"pool is on it, and one that is proven to be down is not asked."
	update.Example = "  gnext pool update shared --add-agent node-4\n  gnext pool update default --remove-agent node-3"
	a.refsFlag(update, &u.AddAgents, "add-agent", api.KindAgent, "node that gets the pool (repeatable)")
	a.refsFlag(update, &u.RemoveAgents, "remove-agent", api.KindAgent, "node that loses it (repeatable)")
	return update
}

func (a *app) imgCmd() *cobra.Command {
	var r api.ImageCreate
	var file string
	add := addCmd(a, images, "Import an image, from here, from a path on the server or from a URL", &r, &r.Name, &r.Labels)
	add.Example = "  gnext img add tiny --file tiny.qcow2 --format qcow2\n  gnext img add tiny --path /vms/backing/tiny.qcow2 --format qcow2\n" +
		"  gnext img add debian --url https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2 --format qcow2 --sha256 SUM"
	add.Flags().StringVar(&file, "file", "", "file to upload; - is stdin")
	add.Flags().StringVar(&r.Path, "path", "", "file on the server, in a directory that its configuration allows")
	add.Flags().StringVar(&r.URL, "url", "", "http or https URL that the server fetches it from, if its configuration allows that")
	add.Flags().StringVar(&r.Format, "format", "", "what the file is, which is never guessed: qcow2, raw, vmdk, vdi, vhdx or vpc (VHD)")
	add.Flags().StringVar(&r.SHA256, "sha256", "", "SHA-256 that the file must have (recommended with --url)")
	must(add.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(api.ImageFormats(), cobra.ShellCompDirectiveNoFileComp)))
	must(add.MarkFlagFilename("file"))
	plain := add.RunE
	add.RunE = func(cmd *cobra.Command, args []string) error {
		sources := 0
		for _, s := range []string{file, r.Path, r.URL} {
			if s != "" {
				sources++
			}
		}
		if sources != 1 {
			return problem.New(problem.Invalid, "an image comes from one place").Try("give one of --file, to upload it, --path, for one on the server, and --url")
		}
		if file == "" {
			return plain(cmd, args)
		}
		return a.uploadImage(cmd, args, &r, file, plain)
	}
	return a.group(&cobra.Command{Use: "img", Short: "Img management"}, add, images.getCmd(a), images.listCmd(a), images.delCmd(a))
}

// uploadImage uploads the file, has it imported by plain, and takes the upload back if that fails.
func (a *app) uploadImage(cmd *cobra.Command, args []string, r *api.ImageCreate, file string, plain func(*cobra.Command, []string) error) error {
	if a.key != "" {
		return problem.New(problem.Invalid, "--idempotency-key does not work with --file, which is sent under a new ID each time").
			Try("leave it out, or use --path")
	}
	// What is wrong with the request should be said before a gigabyte is sent.
	trial := *r
	trial.Upload = api.NewID()
	var err error
	if trial.Name, err = oneName(api.KindImage, args); err != nil {
		return err
	}
	if err := trial.Validate(); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	up, err := a.upload(cmd.Context(), c, file)
	if err != nil {
		return err
	}
	if r.Upload = up.ID; r.SHA256 == "" {
		r.SHA256 = up.SHA256
	}
	err = plain(cmd, args)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 5*time.Second)
		defer cancel()
		_ = c.DeleteUpload(ctx, up.ID) // the server sweeps what is left over
	}
	return err
}

func (a *app) upload(ctx context.Context, c *client.Client, name string) (*client.Uploaded, error) {
	in, length := a.Stdin, int64(-1)
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, problem.Wrap(err, problem.Invalid, "cannot read %s", name)
		}
		defer file.Close()
		info, err := file.Stat()
		switch {
		case err != nil:
			return nil, problem.Wrap(err, problem.Invalid, "cannot read %s", name)
		case info.IsDir():
			return nil, problem.New(problem.Invalid, "%s is a directory", name).Try("give an image file")
		case info.Mode().IsRegular():
			length = info.Size()
		}
		in = file
	}
	var p *progress
	if !a.quiet {
		p = newProgress(a.Stderr, "uploading "+name, length)
	}
	up, err := c.Upload(ctx, in, length, p.update)
	p.end(err == nil)
	return up, err
}

// progress shows how far an upload is: on a terminal as it goes, elsewhere when it is over. A nil progress shows nothing.
type progress struct {
	out   io.Writer
	what  string
	total int64 // below 0: not known
	tty   bool
	begun time.Time
	shown time.Time
	sent  int64
}

func newProgress(out io.Writer, what string, total int64) *progress {
	_, tty := terminalWidth(out)
	return &progress{out: out, what: what, total: total, tty: tty, begun: time.Now()}
}

func (p *progress) update(sent int64) {
	if p == nil {
		return
	}
	p.sent = sent
	if now := time.Now(); p.tty && now.Sub(p.shown) > 100*time.Millisecond {
		p.shown = now
		fmt.Fprintf(p.out, "\r%s\x1b[K", p.line())
	}
}

func (p *progress) line() string {
	if p.total <= 0 {
		return fmt.Sprintf("%s: %s", p.what, formatSize(p.sent))
	}
	return fmt.Sprintf("%s: %d%% (%s of %s)", p.what, p.sent*100/p.total, formatSize(p.sent), formatSize(p.total))
}

func (p *progress) end(ok bool) {
	switch {
	case p == nil:
	case p.tty && !ok:
		fmt.Fprintln(p.out)
	case p.tty:
		fmt.Fprintf(p.out, "\r%s, %s\x1b[K\n", p.line(), shortDuration(time.Since(p.begun)))
	case ok:
		fmt.Fprintf(p.out, "%s, %s\n", p.line(), shortDuration(time.Since(p.begun)))
	}
}
