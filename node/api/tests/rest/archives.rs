//! Archives to upload.

use flate2::Compression;
use flate2::write::GzEncoder;

/// The project's sample, as `cfy` packs it.
pub fn sample() -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/demo/sample");
    builder.append_dir_all("sample", sample).unwrap();
    builder.into_inner().unwrap().finish().unwrap()
}

/// A tar.gz of a folder with these files.
pub fn of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        builder.append_data(&mut header, format!("top/{path}"), text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

/// A multipart body as the client sends it, and its content type.
pub fn parts(params: &str, archive: &[u8]) -> (String, Vec<u8>) {
    let mut body = format!(
        "--B\r\nContent-Disposition: form-data; name=\"params\"\r\n\r\n{params}\r\n--B\r\nContent-Disposition: \
         form-data; name=\"blueprint_archive\"; filename=\"filename\"\r\nContent-Type: text/plain\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(archive);
    body.extend_from_slice(b"\r\n--B--\r\n");
    ("multipart/form-data; boundary=B".to_owned(), body)
}
