package store

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nextstack/nextstack/api/problem"
)

// A sealed secret is one byte of format version, four bytes that name the key, a nonce of 12 bytes, the ciphertext and its
// tag of 16 bytes. The header is authenticated with the rest.
const (
	sealVersion  = 1
	sealKeyID    = 4
	sealHeader   = 1 + sealKeyID
	vaultKeySize = 32
	// vaultFileMax bounds what is read of a key file: more is some other file.
	vaultFileMax = 64 << 10
)

// Vault encrypts secrets at rest, with AES-256-GCM under the keys of a file. The file has one key a line, in base64; lines
// that begin with # do not count. The first key seals; every key opens what was sealed under it. So keys are rotated by
// putting a new one on top.
type Vault struct {
	path string
	seal keyID
	keys map[keyID]cipher.AEAD
}

// keyID is the beginning of a key's hash.
type keyID [sealKeyID]byte

// OpenVault reads the keys at path; if there is no such file, it makes one with a new key. Only its owner may have access.
func OpenVault(path string) (*Vault, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err = createKeyFile(path); err == nil {
			f, err = os.Open(path)
		}
	}
	if err != nil {
		return nil, vaultProblem(path, err.Error()).Try("check the directory and its permissions")
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, vaultProblem(path, err.Error())
	case !info.Mode().IsRegular():
		return nil, vaultProblem(path, "it is not a file").Try("give the path of a file")
	case info.Mode().Perm()&0o077 != 0:
		return nil, vaultProblem(path, fmt.Sprintf("others than its owner have access (mode %04o)", info.Mode().Perm())).
			Try("run chmod 600 %s, and put a new key on top if somebody may have read it", path)
	case info.Size() > vaultFileMax:
		return nil, vaultProblem(path, "it is too large to be a key file").Try("give the path of the key file")
	}
	text, err := io.ReadAll(io.LimitReader(f, vaultFileMax))
	if err != nil {
		return nil, vaultProblem(path, err.Error())
	}
	return parseVault(path, text)
}

func vaultProblem(path, why string) *problem.Problem {
	return problem.New(problem.Internal, "the key file %s cannot be used", path).Because("%s", why)
}

func parseVault(path string, text []byte) (*Vault, error) {
	v := &Vault{path: path, keys: map[keyID]cipher.AEAD{}}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(key) != vaultKeySize {
			// The line itself stays out of the message: it may be most of a key.
			return nil, vaultProblem(path, fmt.Sprintf("line %d is not a key of %d bytes in base64", n, vaultKeySize)).Try("restore the file from its backup")
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, vaultProblem(path, err.Error())
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, vaultProblem(path, err.Error())
		}
		sum := sha256.Sum256(key)
		id := keyID(sum[:sealKeyID])
		if len(v.keys) == 0 {
			v.seal = id
		}
		v.keys[id] = aead
	}
	if err := lines.Err(); err != nil {
		return nil, vaultProblem(path, err.Error()).Try("restore the file from its backup")
	}
	if len(v.keys) == 0 {
		return nil, vaultProblem(path, "there is no key in it").Try("restore the file from its backup; if no secrets were stored yet, delete it and start again")
	}
	return v, nil
}

// createKeyFile makes a key file with one new key, unless somebody else is faster. It is never there half-written.
func createKeyFile(path string) error {
	key := make([]byte, vaultKeySize)
	if _, err := rand.Read(key); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".vault-*") // with mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString("# Keys of the secrets in the store. Without this file they are lost: back it up, apart from the store.\n" +
		base64.StdEncoding.EncodeToString(key) + "\n")
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	if err := os.Link(tmp.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Seal encrypts plain. The aad is what it belongs to, such as the ID of a VM; only who gives the same can open it, so that a
// sealed secret cannot be moved to another place. A secret that is too large to be stored is a too_large problem.
func (v *Vault) Seal(plain, aad string) ([]byte, error) {
	if len(plain) > MaxBytes/2 {
		return nil, problem.New(problem.TooLarge, "the secret is too large").Because("it is %d bytes, and %d are allowed", len(plain), MaxBytes/2)
	}
	header := append([]byte{sealVersion}, v.seal[:]...)
	return v.keys[v.seal].Seal(header, nil, []byte(plain), sealedWith(header, aad)), nil
}

// Open decrypts what Seal made. An internal problem tells that the key is missing, or that the secret was changed or
// belongs elsewhere.
func (v *Vault) Open(sealed []byte, aad string) (string, error) {
	bad := problem.New(problem.Internal, "a stored secret cannot be decrypted")
	if len(sealed) < sealHeader {
		return "", bad.Because("it is cut off").Try("set the secret again, or restore the store from its backup")
	}
	header, rest := sealed[:sealHeader], sealed[sealHeader:]
	if header[0] != sealVersion {
		return "", bad.Because("its format is version %d, and this program knows version %d", header[0], sealVersion).Try("use the version of nextstack that wrote it, or a newer one")
	}
	id := keyID(header[1:])
	aead, ok := v.keys[id]
	if !ok {
		return "", bad.Because("its key, %x, is not in %s", id[:], v.path).Try("restore the key file from its backup")
	}
	plain, err := aead.Open(nil, nil, rest, sealedWith(header, aad))
	if err != nil {
		return "", bad.Because("it was changed after it was stored, or belongs elsewhere").Try("set the secret again, or restore the store from its backup")
	}
	return string(plain), nil
}

// sealedWith returns what is authenticated along with a secret.
func sealedWith(header []byte, aad string) []byte {
	return append(bytes.Clone(header), aad...)
}
