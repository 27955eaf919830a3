package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/client"
)

// storageBench is what the bare script does with volumes, and the same through the API.
type storageBench struct {
	*bench
	pool   *api.Pool
	vm     string // that has our volumes
	pauses sample // of guests, by our snapshots
}

// verbs are the steps in the life of a volume that are measured, in this order.
var verbs = []struct{ verb, what string }{
	{"clone", "new volume of 1 GiB from an image"},
	{"attach", "given to a VM that runs"},
	{"snapshot", "snapshot while the VM runs"},
	{"grow", "grown to 2 GiB while the VM runs"},
}

// storage measures volumes against the bare tools, in a directory and, with make up STORAGE=ceph, in Ceph; and VMs there.
func (b *bench) storage() error {
	dir, ceph, err := b.pools()
	if err != nil {
		return err
	}
	if dir == nil {
		return errors.New("there is no pool of type dir")
	}
	b.pool = dir.Name
	defer func() { b.pool = "" }()
	if err := b.template(); err != nil {
		return err
	}
	defer b.sweep() //nolint:errcheck // the next run sweeps too
	if _, err := b.script("create", "0"); err != nil {
		return err
	}
	defer func() { _, _ = b.script("remove", "0") }()
	ids, err := b.sandbox(b.node, "ids", "0")
	if err != nil || len(ids) != 4 {
		return errors.Join(err, fmt.Errorf("bare.sh ids: %v", ids))
	}
	vm, err := client.Get[*api.VM](b.ctx, b.c, api.DefaultProject, "bench-template")
	if err != nil {
		return err
	}
	for _, address := range []string{vm.Status.Addresses[0], ids[3]} { // a guest that is still starting does not let disks go
		if err := b.awaitPing(address); err != nil {
			return err
		}
	}
	for _, pool := range []*api.Pool{dir, ceph} {
		if pool == nil {
			fmt.Printf("\nCeph is not measured: this sandbox has none (make up STORAGE=ceph).\n")
			return nil
		}
		if err := (&storageBench{bench: b, pool: pool, vm: vm.Name}).volumes(ids[0]); err != nil {
			return err
		}
	}
	return b.whereVMsAre(dir.Name, ceph.Name)
}

// pools finds a pool of directories and one of Ceph; nil: there is none.
func (b *bench) pools() (dir, ceph *api.Pool, err error) {
	for p, err := range client.All[*api.Pool](b.ctx, b.c, "", client.ListOptions{}) {
		switch {
		case err != nil:
			return nil, nil, err
		case p.Spec.Type == api.PoolDir && (dir == nil || p.Spec.Shared):
			dir = p
		case p.Spec.Type == api.PoolRBD:
			ceph = p
		}
	}
	return dir, ceph, nil
}

// volumes takes n volumes through their lives, and as many of the bare script, taking turns.
func (s *storageBench) volumes(guest string) error {
	if err := s.clear(); err != nil {
		return err
	}
	if err := s.prepare(guest); err != nil {
		return err
	}
	ours, theirs := map[string]sample{}, map[string]sample{}
	for i := range s.n {
		for _, v := range verbs {
			steps := []func() error{
				func() error {
					d, err := s.ours(v.verb, i)
					ours[v.verb] = append(ours[v.verb], d)
					return err
				},
				func() error {
					d, err := s.bash("bare-storage.sh", v.verb, strconv.Itoa(i))
					theirs[v.verb] = append(theirs[v.verb], d)
					return err
				},
			}
			if i%2 == 1 {
				steps[0], steps[1] = steps[1], steps[0]
			}
			for _, step := range steps {
				if err := step(); err != nil {
					return fmt.Errorf("%s: %w", v.verb, err)
				}
			}
		}
		if err := s.drop(i); err != nil {
			return err
		}
		if _, err := s.bash("bare-storage.sh", "drop", strconv.Itoa(i)); err != nil {
			return err
		}
	}
	tool := map[string]string{api.PoolDir: "qemu-img, virsh", api.PoolRBD: "rbd, virsh"}[s.pool.Spec.Type]
	fmt.Printf("\n| volumes in a pool of type %s, %d times, in turns | NextStack p50 / p95 | %s p50 / p95 | ratio at p50 | goal |\n|---|---|---|---|---|\n", s.pool.Spec.Type, s.n, tool)
	for _, v := range verbs {
		row(v.what, ours[v.verb], theirs[v.verb], "<= 1.25")
	}
	fmt.Printf("\n| snapshot in a pool of type %s: the guest could not write for | p50 %s, p95 %s | goal < 50 ms |\n|---|---|---|\n", s.pool.Spec.Type, ms(s.pauses.quantile(.5)), ms(s.pauses.quantile(.95)))
	return nil
}

// prepare tells the bare script where to work, when the image is in the pool.
func (s *storageBench) prepare(guest string) error {
	if _, err := s.ours("clone", -1); err != nil { // fetches the image
		return err
	}
	if _, err := s.ours("attach", -1); err != nil { // libvirt gets the pool's key
		return err
	}
	if err := s.drop(-1); err != nil {
		return err
	}
	image, err := client.Get[*api.Image](s.ctx, s.c, api.DefaultProject, "tiny")
	if err != nil {
		return err
	}
	args := []string{"prepare", s.pool.Spec.Type, guest, s.pool.Spec.Path, image.Status.SHA256}
	if src := s.pool.Spec.Source; s.pool.Spec.Type == api.PoolRBD {
		conf, err := s.cephConf()
		if err != nil {
			return err
		}
		args = append(args[:3], src.Name, image.Status.SHA256, conf, s.pool.ID, src.User, src.Hosts[0])
	}
	_, err = s.bash("bare-storage.sh", args...)
	return err
}

func volumeName(i int) string { return fmt.Sprintf("bench-volume-%d", i+1) }

// ours does one step of a volume's life through the API and returns how long it took until its operation had ended.
func (s *storageBench) ours(verb string, i int) (time.Duration, error) {
	name, w := volumeName(i), client.Write{Wait: time.Minute}
	start := time.Now()
	var op *api.Operation
	var err error
	switch verb {
	case "clone":
		op, err = client.Create(s.ctx, s.c, api.DefaultProject, &api.VolumeCreate{Name: name, Size: api.GiB, Pool: s.pool.Name, Image: "tiny", VM: s.vm}, w)
	case "attach":
		op, err = s.c.AttachVolume(s.ctx, api.DefaultProject, name, api.VolumeAttach{VM: s.vm}, w)
	case "snapshot":
		op, err = client.Create(s.ctx, s.c, api.DefaultProject, &api.SnapshotCreate{Name: name, Volume: name}, w)
	case "grow":
		op, err = s.c.ResizeVolume(s.ctx, api.DefaultProject, name, api.VolumeResize{Size: 2 * api.GiB}, w)
	}
	if err != nil {
		return 0, err
	}
	took, err := s.done(start, op)
	if err != nil || verb != "snapshot" {
		return took, err
	}
	var taken api.SnapshotTaken
	if op, err = s.c.Operation(s.ctx, op.ID); err == nil {
		err = json.Unmarshal(op.Result, &taken)
	}
	s.pauses = append(s.pauses, taken.Pause)
	return took, err
}

// drop ends a volume's life, which is not measured.
func (s *storageBench) drop(i int) error { return s.end(volumeName(i)) }

func (s *storageBench) end(name string) error {
	w := client.Write{Wait: time.Minute}
	v, err := client.Get[*api.Volume](s.ctx, s.c, api.DefaultProject, name)
	if err != nil {
		return err
	}
	if len(v.Status.Attachments) > 0 {
		op, err := s.c.DetachVolume(s.ctx, api.DefaultProject, name, api.VolumeDetach{}, w)
		if err == nil {
			_, err = s.done(time.Now(), op)
		}
		if err != nil {
			return err
		}
	}
	op, err := s.c.DeleteVolume(s.ctx, api.DefaultProject, name, api.VolumeDelete{Now: true, Snapshots: true}, w)
	if err == nil {
		_, err = s.done(time.Now(), op)
	}
	return err
}

// clear removes what a run that was stopped has left.
func (s *storageBench) clear() error {
	var names []string
	for v, err := range client.All[*api.Volume](s.ctx, s.c, api.DefaultProject, client.ListOptions{}) {
		if err != nil {
			return err
		}
		if strings.HasPrefix(v.Name, "bench-volume-") {
			names = append(names, v.Name)
		}
	}
	for _, name := range names {
		if err := s.end(name); err != nil {
			return err
		}
	}
	return nil
}

// whereVMsAre compares making VMs whose disks are in Ceph with others in a directory.
func (b *bench) whereVMsAre(dir, ceph string) error {
	took := map[string]*sample{dir: {}, ceph: {}}
	for i := range b.n {
		order := []string{ceph, dir}
		if i%2 == 1 {
			order = []string{dir, ceph}
		}
		for _, pool := range order {
			b.pool = pool
			d, err := b.create("bench-" + pool)
			if err != nil {
				return err
			}
			*took[pool] = append(*took[pool], d)
			if _, err := b.remove("bench-" + pool); err != nil {
				return err
			}
		}
	}
	fmt.Printf("\n| one VM, %d times, in turns | in Ceph p50 / p95 | in a directory p50 / p95 | ratio at p50 | |\n|---|---|---|---|---|\n", b.n)
	row("create until the domain runs, no data of the image copied", *took[ceph], *took[dir], "")
	return nil
}

// cephConf is the configuration of the sandbox's Ceph, for its administrator.
func (b *bench) cephConf() (string, error) {
	return filepath.Abs(filepath.Join(cmp.Or(os.Getenv("SANDBOX_DIR"), filepath.Join(b.root, ".dev", "sandbox")), "ceph", "ceph.conf"))
}
