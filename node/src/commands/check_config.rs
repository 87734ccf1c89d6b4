//! `quorate check-config`.

use std::path::Path;

use quorate_config::Config;

pub fn main(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let cluster = config.address.cluster.map_or_else(|| "none".to_owned(), |address| address.to_string());
    println!("{} is fine: node {} at {}, cluster address {cluster}", file.display(), config.name, config.address.node);
    Ok(())
}
