package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
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
		col("DEPRECATED", func(i *api.Image) cell { return yes(i.Spec.Deprecated) }),
		col("SIZE", func(i *api.Image) cell { return optionalSize(i.Status.Size) }),
		col("VIRTUAL SIZE", func(i *api.Image) cell { return optionalSize(i.Status.VirtualSize) }),
		ageCol[*api.Image](), idCol[*api.Image](),
	},
	more: []column[*api.Image]{
		col("REASON", func(i *api.Image) cell { return text(i.Status.Reason) }),
		col("ADVICE", func(i *api.Image) cell { return text(i.Spec.Advice) }),
		col("SOURCE", func(i *api.Image) cell { return text(i.Spec.Source) }),
		col("SHA256", func(i *api.Image) cell { return text(i.Status.SHA256) }),
	},
}

func (a *app) imgCmd() *cobra.Command {
	var r api.ImageCreate
	var file string
	add := addCmd(a, images, "Make an image, of a file, a URL, a volume or a snapshot", &r, &r.Name, &r.Labels)
	add.Long = "Make an image, of a file that is here or on the server, of what is at a URL, of a volume or of a snapshot.\n\n" +
		"An upload that was interrupted goes on when the same command is run again within a day."
	add.Example = "  gnext img add tiny --file tiny.qcow2 --format qcow2\n  gnext img add tiny --path /vms/backing/tiny.qcow2 --format qcow2\n" +
		"  gnext img add golden --snapshot before-upgrade\n" +
		"  gnext img add debian --url https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2 --format qcow2 --sha256 SUM"
	add.Flags().StringVar(&file, "file", "", "file to upload; - is stdin")
	add.Flags().StringVar(&r.Path, "path", "", "file on the server, in a directory that its configuration allows")
	add.Flags().StringVar(&r.URL, "url", "", "http or https URL that the server fetches it from, if its configuration allows that")
	a.refFlag(add, &r.Volume, "volume", api.KindVolume, "volume that it becomes a copy of; no VM that runs may have it")
	a.refFlag(add, &r.Snapshot, "snapshot", api.KindSnapshot, "snapshot that it becomes a copy of")
	add.Flags().StringVar(&r.Format, "format", "", "what the file is, which is never guessed: qcow2, raw, vmdk, vdi, vhdx or vpc (VHD)")
	add.Flags().StringVar(&r.SHA256, "sha256", "", "SHA-256 that the file must have (recommended with --url)")
	must(add.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(api.ImageFormats(), cobra.ShellCompDirectiveNoFileComp)))
	must(add.MarkFlagFilename("file"))
	plain := add.RunE
	add.RunE = func(cmd *cobra.Command, args []string) error {
		sources := 0
		for _, s := range []string{file, r.Path, r.URL, r.Volume, r.Snapshot} {
			if s != "" {
				sources++
			}
		}
		if sources != 1 {
			return problem.New(problem.Invalid, "an image comes from one place").Try("give one of --file, to upload it, --path, for one on the server, --url, --volume and --snapshot")
		}
		if file == "" {
			return plain(cmd, args)
		}
		return a.uploadImage(cmd, args, &r, file, plain)
	}
	return a.group(&cobra.Command{Use: "img", Short: "Img management"}, add, images.getCmd(a), images.listCmd(a), a.imgUpdateCmd(), a.imgExportCmd(), images.delCmd(a))
}

// uploadImage uploads the file, has it imported by plain, and takes the upload back if that fails.
func (a *app) uploadImage(cmd *cobra.Command, args []string, r *api.ImageCreate, file string, plain func(*cobra.Command, []string) error) error {
	if a.key != "" {
		return problem.New(problem.Invalid, "--idempotency-key does not work with --file").
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
	if _, err := client.Get[*api.Image](cmd.Context(), c, a.project, trial.Name); err == nil {
		return problem.New(problem.Conflict, "the name %q is taken", trial.Name).Because("there is an image of that name already").Try("choose another name")
	} // whatever else is wrong is said when the image is asked for
	own, leave := alone(file) // until it is imported: the upload goes with that
	defer leave()
	up, err := a.upload(cmd.Context(), c, file, own)
	if err != nil {
		return err
	}
	if r.Upload = up.ID; r.SHA256 == "" {
		r.SHA256 = up.SHA256
	}
	err = plain(cmd, args)
	if err != nil && !problem.Is(err, problem.Cancelled) { // an operation that nobody waits for any more still needs it
		ctx, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 5*time.Second)
		defer cancel()
		_ = c.DeleteUpload(ctx, up.ID) // the server sweeps what is left over
	}
	return err
}

// uploadSpace makes the IDs of uploads.
var uploadSpace = uuid.MustParse("b1f2c1de-5e0c-4c39-9d7a-0c6f75706c64")

// uploadID returns the ID under which a file is sent, the same in each run until the file changes: what an interrupted run has sent
// is not sent again.
func uploadID(server, name string, info fs.FileInfo) string {
	if path, err := filepath.Abs(name); err == nil {
		name = path
	}
	host, _ := os.Hostname() // "" will do
	return uuid.NewSHA1(uploadSpace, fmt.Appendf(nil, "%s\x00%s\x00%s\x00%d\x00%d", server, host, name, info.Size(), info.ModTime().UnixNano())).String()
}

// upload sends a file. One that another gnext sends at the same time, as own tells, is sent by itself, and cannot be gone on with.
func (a *app) upload(ctx context.Context, c *client.Client, name string, own bool) (*client.Uploaded, error) {
	if name == "-" {
		p := a.progress("uploading "+name, -1)
		up, err := c.Upload(ctx, a.Stdin, -1, p.update)
		p.end(err == nil)
		return up, err
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, unreadable(err, name)
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return nil, unreadable(err, name)
	case info.IsDir():
		return nil, problem.New(problem.Invalid, "%s is a directory", name).Try("give an image file")
	case !info.Mode().IsRegular():
		p := a.progress("uploading "+name, -1)
		up, err := c.Upload(ctx, file, -1, p.update)
		p.end(err == nil)
		return up, err
	}
	id := uploadID(c.Address(), name, info)
	if !own {
		id = api.NewID()
	}
	p := a.progress("uploading "+name, info.Size())
	up, err := c.UploadAs(ctx, id, file, info.Size(), p.update)
	p.end(err == nil)
	if err != nil && own && !a.quiet && p != nil && p.sent > 0 {
		fmt.Fprintln(a.Stderr, "run it again to go on with the upload")
	}
	return up, err
}

// progress returns what shows how far a transfer is; nil if nobody wants to know.
func (a *app) progress(what string, total int64) *progress {
	if a.quiet {
		return nil
	}
	return newProgress(a.Stderr, what, total)
}

func (a *app) imgUpdateCmd() *cobra.Command {
	var deprecated bool
	var advice string
	update := updateCmd(a, images, "Deprecate an image, or change its labels", func(cmd *cobra.Command) (*api.ImageUpdate, error) {
		var u api.ImageUpdate
		if cmd.Flags().Changed("deprecated") {
			u.Deprecated = &deprecated
		}
		if cmd.Flags().Changed("advice") {
			u.Advice = &advice
		}
		return &u, nil
	}, func(u *api.ImageUpdate, l *map[string]string) { u.Labels = l })
	update.Long = "Deprecate an image, or change its labels. What is in an image never changes.\n\n" +
		"VMs can still be made of a deprecated image; whoever does is warned."
	update.Example = "  gnext img update debian-12 --deprecated --advice 'use debian-13'\n  gnext img update debian-12 --deprecated=false"
	update.Flags().BoolVar(&deprecated, "deprecated", false, "nobody should make new VMs of it")
	update.Flags().StringVar(&advice, "advice", "", "what to do instead")
	return update
}

func (a *app) imgExportCmd() *cobra.Command {
	var uuid []string
	var file, format string
	cmd := &cobra.Command{
		Use: "export NAME|UUID", Short: "Download an image, in this or another format",
		Long: "Download an image. As qcow2 it is what the server keeps; other formats are made first, and kept there for a day.\n" +
			"A download that was interrupted goes on when it is run again.",
		Example:           "  gnext img export debian --file debian.qcow2\n  gnext img export debian --file debian.vmdk --format vmdk",
		ValidArgsFunction: a.completeArgs(api.KindImage, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := oneRef(api.KindImage, args, uuid)
			if err != nil {
				return err
			}
			return a.exportImage(cmd.Context(), ref, file, format)
		},
	}
	exportFlags(cmd, &file, &format)
	a.uuidFlag(cmd, api.KindImage, &uuid)
	return a.writes(cmd)
}

// exported is what the download of an image has brought.
type exported struct {
	File   string `json:"file"`
	Format string `json:"format"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

func (a *app) exportImage(ctx context.Context, ref, file, format string) error {
	if err := vacant(file); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	image, err := client.Get[*api.Image](ctx, c, a.project, ref)
	if err != nil {
		return err
	}
	d := client.Download{Image: image.ID, Format: format, SHA256: image.Status.SHA256, Size: image.Status.Size}
	if format != api.FormatQCOW2 {
		op, err := c.ExportImage(ctx, a.project, image.ID, api.ImageExport{Format: format}, a.write(0))
		if err != nil {
			return err
		}
		if d, err = a.made(ctx, c, op, d); err != nil {
			return err
		}
	}
	return a.fetch(ctx, c, d, file)
}

// made waits until an export is there, and says in d what it is.
func (a *app) made(ctx context.Context, c *client.Client, op *api.Operation, d client.Download) (client.Download, error) {
	op, err := a.await(ctx, c, op.ID)
	if err != nil {
		return d, err
	}
	if op.State != api.OpSucceeded {
		return d, failure(op)
	}
	var made api.ImageExported
	err = json.Unmarshal(op.Result, &made)
	d.SHA256, d.Size = made.SHA256, made.Size
	return d, problem.Wrap(err, problem.Internal, "the result of operation %s cannot be read", op.ID)
}

// fetch downloads what is there, and shows what it is.
func (a *app) fetch(ctx context.Context, c *client.Client, d client.Download, file string) error {
	p := a.progress("downloading "+file, d.Size)
	err := c.DownloadImage(ctx, a.project, d, file, p.update)
	p.end(err == nil)
	if err != nil {
		return err
	}
	return printList(ctx, a, []column[exported]{
		col("FILE", func(e exported) cell { return text(e.File) }),
		col("FORMAT", func(e exported) cell { return text(e.Format) }),
		col("SIZE", func(e exported) cell { return size(e.Size) }),
		col("SHA256", func(e exported) cell { return text(e.SHA256) }),
	}, []exported{{file, d.Format, d.Size, d.SHA256}})
}

// vacant checks, before the server makes anything, that there is a place for it.
func vacant(file string) error {
	if file == "" {
		return problem.New(problem.Invalid, "it is not said where to write it").Try("give --file")
	}
	if _, err := os.Lstat(file); err == nil {
		return problem.New(problem.Conflict, "%s is there already", file).Try("give another name, or remove it first")
	}
	// Better now than when all is copied. What there is of an earlier download goes on.
	_, before := os.Lstat(file + client.PartExt)
	f, err := os.OpenFile(file+client.PartExt, os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		err = f.Close()
	}
	if err == nil && errors.Is(before, fs.ErrNotExist) {
		err = os.Remove(f.Name())
	}
	if err != nil {
		return problem.Caused(err, problem.Invalid, "%s cannot be written", file).Try("give --file a name in a directory that is there, and that you may write to")
	}
	return nil
}

// exportFlags are those of commands that export something.
func exportFlags(cmd *cobra.Command, file, format *string) {
	cmd.Flags().StringVar(file, "file", "", "file to write, which must not be there yet")
	cmd.Flags().StringVar(format, "format", api.FormatQCOW2, "qcow2, raw, vmdk, vdi, vhdx or vpc (VHD)")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(api.ImageFormats(), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.MarkFlagFilename("file"))
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
