package server

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

func (s *Server) routeImages() {
	readable[api.Image](s)
	creatable(s, api.KindImage, "From an upload (PUT /v1/uploads/{id} first), from a file on the server, or from a URL.", Admission.CreateImage)
	updatable(s, api.KindImage, Admission.UpdateImage)
	deletable(s, api.KindImage, "No volume must have been made from it.", Admission.DeleteImage)
	changing[api.ImageExport](s, writeOperation("export-image", http.MethodPost, itemPath(api.KindImage)+"/export", api.KindImage, "Make an image in another format",
		"The operation's result tells size and SHA-256. Then download it: GET .../content?format=FORMAT. It is kept for a day."), api.KindImage, Admission.ExportImage)
	handle(s, huma.Operation{
		OperationID: "download-image", Method: http.MethodGet, Path: itemPath(api.KindImage) + "/content", Tags: []string{string(api.KindImage)}, Summary: "Download an image",
		Description: "As it is kept (qcow2), or in another format that it was exported to. The ETag is its SHA-256. Ranges are understood, so that a download that broke can go on.",
		Responses:   map[string]*huma.Response{"200": {Description: "The file", Content: binaryContent()}},
	}, s.downloadImage)
}

type downloadInput struct {
	InProject
	Ref    string `path:"ref" doc:"Name or ID"`
	Format string `query:"format" enum:"qcow2,raw,vmdk,vdi,vhdx,vpc" default:"qcow2"`
}

func (s *Server) downloadImage(ctx context.Context, in *downloadInput) (*huma.StreamResponse, error) {
	if err := checkRef(in.Ref); err != nil {
		return nil, err
	}
	h := handleOf(ctx)
	if err := h.Check(auth.Read, api.KindImage, in.Project); err != nil {
		return nil, err
	}
	if err := s.knownProject(ctx, api.KindImage, in.Project); err != nil {
		return nil, err
	}
	image, err := store.Find[api.Image](ctx, s.o.KV, h, in.Project, in.Ref)
	if err != nil {
		return nil, err
	}
	if in.Format == api.FormatQCOW2 {
		return s.sendImage(image)
	}
	if s.o.ExportFile == nil {
		return nil, problem.New(problem.Unsupported, "this server exports no images")
	}
	path, sum, err := s.o.ExportFile(image.ID, in.Format)
	if err != nil {
		return nil, err
	}
	return sendFile(path, sum, image.Name)
}

// sendImage answers with the stored file of an image.
func (s *Server) sendImage(image *api.Image) (*huma.StreamResponse, error) {
	if image.Status.Phase != api.PhaseReady {
		return nil, problem.New(problem.Conflict, "image %s is not ready", image.Name).Because("it is %s", image.Status.Phase).Try("wait until it is")
	}
	return sendFile(s.o.ImageFile(image), image.Status.SHA256, image.Name)
}

func sendFile(path, sum, name string) (*huma.StreamResponse, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) { // it will not come back by itself, so nobody should try again
		return nil, problem.New(problem.NotFound, "the file of image %s is gone from the server", name).Try("import the image anew, and delete this one")
	}
	if err != nil {
		return nil, hidden(err, problem.Unavailable, "look into the server's log", "the file of image %s cannot be read", name)
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		defer f.Close()
		r, w := humachi.Unwrap(c)
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("ETag", `"`+sum+`"`)
		http.ServeContent(&patient{ResponseWriter: w, control: http.NewResponseController(w)}, r, "", time.Time{}, f)
	}}, nil
}
